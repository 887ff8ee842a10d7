package recorder

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

// A log is encrypted by Badger, with a key that is made for it. That key is in the
// log's folder, wrapped by another one, which is somewhere else: in a file, or in a
// KMS. So who has the folder has nothing, every command finds the way to the key,
// and the other key can be changed without writing the log anew.
//
//	file:/etc/broker/log-secret               32 bytes in base64 or hexadecimal
//	gcpkms://projects/…/cryptoKeys/KEY        see kms.go

// encryptionFile is in the log's folder, beside Badger's own files.
const encryptionFile = "ENCRYPTION"

// An encryption is what is in it.
type encryption struct {
	Version int    `json:"version"` // 1
	By      string `json:"by"`      // what wraps the key
	Wrapped []byte `json:"wrapped"`
}

var (
	// ErrEncryption is wrapped by errors of a log whose key cannot be had.
	ErrEncryption = errors.New("the log's key cannot be opened")
	// ErrNotEncrypted is returned for a log that has been written without encryption
	// and shall have some.
	ErrNotEncrypted = errors.New("the log is not encrypted")
)

// keySize is the length of keys, in bytes: AES-256.
const keySize = 32

// wrapLabel is what a wrapped key is for.
const wrapLabel = "mcp-broker log 1"

// A wrapper keeps the key that others are wrapped by.
type wrapper interface {
	wrap(key []byte) ([]byte, error)
	unwrap(wrapped []byte) ([]byte, error)
}

// CheckWrapper returns an error if by is nothing that a log's key can be wrapped by.
// It is not looked whether it is there.
func CheckWrapper(by string) error {
	_, err := newWrapper(by)
	return err
}

func newWrapper(by string) (wrapper, error) {
	if path, ok := strings.CutPrefix(by, "file:"); ok {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("file:%s is no absolute path", path)
		}
		return keyFile32(path), nil
	}
	if strings.HasPrefix(by, kmsScheme) {
		return newKMS(by)
	}
	// What is there may be the key itself.
	return nil, errors.New("must be file:PATH, of a file with 32 bytes in base64, or gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K")
}

// keyFile32 wraps by the key in the file of that name.
type keyFile32 string

func (k keyFile32) key() ([]byte, error) {
	text, err := os.ReadFile(string(k))
	if err != nil {
		return nil, err
	}
	s := strings.TrimSpace(string(text))
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString} {
		if key, err := decode(s); err == nil && len(key) == keySize {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s holds no 32 bytes in base64 or hexadecimal", string(k))
}

func (k keyFile32) wrap(key []byte) ([]byte, error) {
	by, err := k.key()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 12)
	rand.Read(nonce)
	return newAEAD(by).Seal(nonce, nonce, key, []byte(wrapLabel)), nil
}

func (k keyFile32) unwrap(wrapped []byte) ([]byte, error) {
	by, err := k.key()
	if err != nil {
		return nil, err
	}
	if len(wrapped) < 12 {
		return nil, errors.New("it is cut")
	}
	key, err := newAEAD(by).Open(nil, wrapped[:12], wrapped[12:], []byte(wrapLabel))
	if err != nil {
		return nil, fmt.Errorf("it is not wrapped by the key in %s", string(k))
	}
	return key, nil
}

func readEncryption(dir string) (*encryption, error) {
	text, err := os.ReadFile(filepath.Join(dir, encryptionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var e encryption
	if err := json.Unmarshal(text, &e); err != nil || e.Version != 1 {
		return nil, fmt.Errorf("%w: %s cannot be read", ErrEncryption, encryptionFile)
	}
	return &e, nil
}

// write puts e into a log's folder, in the place of what is there, so that no kill
// and no loss of power leaves neither.
func (e *encryption) write(dir string) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, encryptionFile), append(text, '\n'), 0o600)
}

// writeFile puts text in the place of a file, so that no kill and no loss of power leaves
// half of it, or takes it away once this has returned.
func writeFile(path string, text []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path))
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// newEncryption makes a key, and wraps it.
func newEncryption(by string) (key []byte, e *encryption, err error) {
	key = make([]byte, keySize)
	rand.Read(key)
	e = &encryption{Version: 1}
	return key, e, e.rewrap(key, by)
}

// rewrap wraps key by by, if that can open it again.
func (e *encryption) rewrap(key []byte, by string) error {
	w, err := newWrapper(by)
	if err != nil {
		return err
	}
	wrapped, err := w.wrap(key)
	if err == nil {
		var again []byte
		if again, err = w.unwrap(wrapped); err == nil && !bytes.Equal(again, key) {
			err = errors.New("what is wrapped by it comes back as something else")
		}
	}
	if err != nil {
		return fmt.Errorf("wrap the log's key by %s: %w", by, err)
	}
	e.By, e.Wrapped = by, wrapped
	return nil
}

// open returns the key. by is what wraps it; if empty, what e says.
func (e *encryption) open(by string) ([]byte, error) {
	by = cmp.Or(by, e.By)
	w, err := newWrapper(by)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncryption, err)
	}
	key, err := w.unwrap(e.Wrapped)
	if err == nil && len(key) != keySize {
		err = errors.New("it is of another length")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncryption, err)
	}
	return key, nil
}

// EncryptedBy returns what the key of the log in a folder is wrapped by, or nothing
// if the log is not encrypted.
func EncryptedBy(dir string) (by string, err error) {
	e, err := readEncryption(dir)
	if e == nil {
		return "", err
	}
	return e.By, err
}

// openEncryption returns the key of the log in a folder, nil if it has none. by is
// what wraps it; if empty, what the log says. A log that is not there yet is to be
// encrypted if by is not empty.
func openEncryption(dir, by string) ([]byte, error) {
	e, err := readEncryption(dir)
	switch {
	case err != nil || e == nil && by == "":
		return nil, err
	case e != nil:
		key, err := e.open(by)
		if err == nil && by != "" && by != e.By { // the same key, in another place
			e.By = by
			err = e.write(dir)
		}
		return key, err
	}
	if _, err := os.Stat(filepath.Join(dir, badger.ManifestFilename)); err == nil {
		return nil, ErrNotEncrypted
	}
	key, e, err := newEncryption(by)
	if err == nil {
		err = e.write(dir)
	}
	return key, err
}

// RotateEncryption wraps the key of the log in a folder by another one. old is what
// wraps it now; if empty, what the log says. The log may be in use: its own key
// stays the same.
func RotateEncryption(dir, old, by string) error {
	e, err := readEncryption(dir)
	if err != nil {
		return err
	}
	if e == nil {
		return ErrNotEncrypted
	}
	key, err := e.open(old)
	if err != nil {
		return err
	}
	if err := e.rewrap(key, by); err != nil {
		return err
	}
	return e.write(dir)
}

// rewriting is where a log is written anew.
func rewriting(dir string) string { return dir + ".new" }

// Reencrypt writes the log in a broker's data folder anew, with a new key that is wrapped by by, or
// without encryption if by is empty. Nobody may have the log open. Whenever it is
// killed, the folder has the log as it was or as it shall be; what else is left of
// it, the next Open removes. progress is told of bytes now and then; it may be nil.
//
// A log that is damaged stays as it is: what cannot be read would be gone with it.
func Reencrypt(data, by string, progress func(done, of int64)) error {
	return reencrypt(data, by, progress, func(int) {})
}

// reencrypt is Reencrypt, which tells stepped, for tests, what it has done: 1 made the
// folder, 2 and written the key, 3 copied, 4 exchanged, 5 and flushed that.
func reencrypt(data, by string, progress func(done, of int64), stepped func(int)) error {
	dir := filepath.Join(data, "log")
	signs, err := existingKey(data)
	if err != nil {
		return err
	}
	// Opened once to bring what the last process left in order: what is only read
	// cannot be.
	l, err := Open(Options{Dir: dir, Key: signs})
	if err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return err
	}
	if !l.journal.empty() {
		return fmt.Errorf("write log %s anew: a part of what was recorded is in its journal, and cannot be brought to the database now", dir)
	}
	key, err := openEncryption(dir, "")
	if err != nil {
		return err
	}
	from, err := badger.Open(badgerOptions(l.o, key).WithReadOnly(true)) // a broker cannot open it meanwhile
	if err != nil {
		return notOpened(dir, err)
	}
	defer from.Close()
	if err := guarded(from.VerifyChecksum); err != nil { // it trips over a block that it cannot read
		return fmt.Errorf("write log %s anew: %w: a block of a table cannot be read: %w", dir, ErrDamaged, err)
	}
	lsm, vlog := from.Size()
	size := lsm + vlog
	if free, err := l.freeSpace(); err != nil || free < size+l.o.Free {
		return errors.Join(err, fmt.Errorf("%d MiB are free on the disk of %s, and writing the log anew takes %d", free>>20, dir, (size+l.o.Free)>>20))
	}
	to := rewriting(dir)
	if err := errors.Join(os.RemoveAll(to), os.Mkdir(to, 0o700)); err != nil {
		return err
	}
	stepped(1)
	key = nil
	if by != "" {
		var e *encryption
		if key, e, err = newEncryption(by); err == nil {
			err = e.write(to)
		}
	}
	stepped(2)
	if err == nil {
		err = copyLog(from, to, key, func(done int64) {
			if progress != nil {
				progress(done, size)
			}
		})
	}
	if err == nil {
		err = l.holds.copyTo(to)
	}
	if err == nil {
		stepped(3)
		err = exchange(dir, to)
	}
	if err == nil {
		stepped(4)
		err = syncFolder(filepath.Dir(dir))
	}
	stepped(5)
	return errors.Join(err, os.RemoveAll(to))
}

// copyLog writes what is in a log into a folder.
func copyLog(from *badger.DB, dir string, key []byte, progress func(done int64)) error {
	to, err := badger.Open(badgerOptions(Options{Dir: dir, Log: silent}, key))
	if err != nil {
		return err
	}
	out := to.NewWriteBatch()
	defer out.Cancel()
	done := int64(0)
	err = from.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: true, PrefetchSize: 16})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			value, err := item.ValueCopy(nil)
			if err == nil {
				err = out.Set(item.KeyCopy(nil), value)
			}
			if err != nil {
				return err
			}
			done += int64(len(value))
			progress(done)
		}
		return nil
	})
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}
