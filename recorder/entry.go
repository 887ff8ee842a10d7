package recorder

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A journalFile is one file.
type journalFile struct {
	number  int
	path    string
	sum     uint32      // of the name
	aead    cipher.AEAD // nil: entries are not encrypted
	file    *os.File    // nil: it is of a process that is dead,
	loaded  bool        // and what is in it is in tails,
	left    *leftover   // with what it has left pending, unless that is nil
	stays   bool        // its name does, after a loss of power; for who flushes
	size    int64
	entries int             // that the database does not have
	of      map[string]bool // sessions that have something in it
	beneath map[string]bool // sessions that may have something behind its end, from another time
	spare   *journalFile    // of which it is being made
	removed bool
}

// has reports whether a file may have anything of a session, if only from another time.
// Of one that a dead process has left, nobody knows.
func (f *journalFile) has(session string) bool {
	return f.file == nil || f.of[session] || f.beneath[session]
}

// named returns the file of that name, or nil if it is none of the journal's.
func (j *journal) named(name string) *journalFile {
	number, hexadecimal, _ := strings.Cut(name, "-")
	n, err := strconv.Atoi(number)
	salt, wrong := hex.DecodeString(hexadecimal)
	if err != nil || wrong != nil || len(salt) != saltSize {
		return nil
	}
	f := &journalFile{number: n, path: filepath.Join(j.dir, name), sum: crc32.Checksum(salt, castagnoli)}
	if j.key != nil {
		key, err := hkdf.Key(sha256.New, j.key, salt, journalLabel, keySize)
		if err != nil {
			panic(err) // only a length that cannot be
		}
		f.aead = newAEAD(key)
	}
	return f
}

// seal appends an entry for that offset to dst.
func (f *journalFile) seal(dst []byte, at int64, session string, b Block) []byte {
	head := len(dst)
	dst = append(dst, make([]byte, entryHead)...)
	dst = binary.BigEndian.AppendUint32(append(dst, session...), b.Number)
	dst = append(dst, b.Bytes...)
	if f.aead != nil {
		text := dst[head+entryHead:]
		dst = f.aead.Seal(dst[:head+entryHead], nonceOf(uint64(at)), text, nil)
	}
	f.sealHead(dst[head:], at)
	return dst
}

// sealEnd appends the empty entry for that offset, with which the file ends.
func (f *journalFile) sealEnd(dst []byte, at int64) []byte {
	dst = append(dst, make([]byte, entryHead)...)
	f.sealHead(dst[len(dst)-entryHead:], at)
	return dst
}

// sealHead writes the head of an entry for that offset.
func (f *journalFile) sealHead(entry []byte, at int64) {
	room, body := entry[:entryHead], entry[entryHead:]
	sum := f.sumAt(room, at)
	binary.LittleEndian.PutUint32(room, uint32(len(body)))
	binary.LittleEndian.PutUint32(room[4:], checksumOf(sum, room[:4], body))
}

// sumAt is the checksum of the name and an offset. room is 8 bytes that are overwritten.
func (f *journalFile) sumAt(room []byte, at int64) uint32 {
	binary.BigEndian.PutUint64(room, uint64(at))
	return crc32.Update(f.sum, castagnoli, room)
}

// checksumOf goes on with sum, over an entry's length and what is behind the checksum.
func checksumOf(sum uint32, length, body []byte) uint32 {
	return crc32.Update(crc32.Update(sum, castagnoli, length), castagnoli, body)
}

// read calls entry with the entries of a file, and wrong with what is none.
func (f *journalFile) read(entry func(session string, b Block), wrong func(from, to int)) error {
	all, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	if f.left != nil {
		all = f.left.over(f, all, wrong)
	}
	f.walk(0, all, entry, wrong)
	return nil
}

// walk is read of what is at an offset in a file. It returns where the empty entry is, or else
// where the last one ends.
func (f *journalFile) walk(offset int64, all []byte, entry func(session string, b Block), wrong func(from, to int)) (end int) {
	bad := -1 // since there
	for at := 0; at < len(all); {
		session, b, n := f.open(offset+int64(at), all[at:])
		if n == 0 {
			if bad < 0 {
				bad = at
			}
			at++
			continue
		}
		if bad >= 0 {
			wrong(bad, at)
			bad = -1
		}
		if n == entryHead {
			return at
		}
		entry(session, b)
		at += n
		end = at
	}
	if bad >= 0 {
		wrong(bad, len(all))
	}
	return end
}

// open opens the entry that b begins with, at that offset. It returns its length, 0 if
// there is none, and entryHead if it is the empty one.
func (f *journalFile) open(at int64, b []byte) (session string, block Block, n int) {
	if len(b) < entryHead {
		return "", block, 0
	}
	size := int64(binary.LittleEndian.Uint32(b))
	if size != 0 && size < entryPlace || size > maxEntry || size > int64(len(b)-entryHead) {
		return "", block, 0
	}
	n = entryHead + int(size)
	body := b[entryHead:n:n]
	if checksumOf(f.sumAt(make([]byte, 8), at), b[:4], body) != binary.LittleEndian.Uint32(b[4:]) {
		return "", block, 0
	}
	if size == 0 {
		return "", block, n
	}
	if f.aead != nil {
		var err error
		if body, err = f.aead.Open(nil, nonceOf(uint64(at)), body, nil); err != nil || len(body) < entryPlace {
			return "", block, 0
		}
	}
	return string(body[:idSize]), Block{binary.BigEndian.Uint32(body[idSize:]), body[entryPlace:]}, n
}
