package recorder

import (
	"encoding/binary"
	"slices"
	"sort"
)

// The words of many sessions are together in a segment, for a key a word and session
// would cost more than the recording. In the database:
//
//	x/g/<last><first>      the segment: its sessions, 16 bytes each, sorted
//	x/c/<bucket><last><first>  of words whose hash begins with bucket (12 bits in 2 bytes),
//	                       the rest of the hash (20 bits) and the place of the session
//	                       in the segment (12 bits): 4 bytes little-endian each, sorted
//	x/b                    the segment that is being made or deleted: without x/g it is
//	                       void, with x/g the x/w of its sessions are
//
// A word that few sessions have costs one look a segment and one a session that is in
// none yet; one that many have costs what is found. Of a session that is deleted, what a
// segment has of it stays until all of its sessions are deleted: 20 bits of a hash a word.

const (
	segmentSessions = 1 << 12
	segmentWords    = 4 << 20 // a segment with as many is full, however few its sessions are
	bucketBits      = 12
	restBits        = 32 - bucketBits // of a hash
)

var buildingKey = []byte("x/b")

// A segment is named by the ids of its first and its last session.
type segment struct{ first, last string }

func (s segment) name() string { return s.last + s.first }

func segmentOf(name string) segment { return segment{first: name[idSize:], last: name[:idSize]} }

func segmentKey(s segment) []byte { return []byte("x/g/" + s.name()) }

func chunkKey(bucket wordHash, s segment) []byte {
	return append(binary.BigEndian.AppendUint16([]byte("x/c/"), uint16(bucket)), s.name()...)
}

// An entry of a chunk is the rest of a word's hash and the place of a session in the
// segment.
func entry(h wordHash, place int) uint32 { return h<<bucketBits | uint32(place) }

// makeSegment makes a segment of the oldest sessions that are in none.
func (l *Log) makeSegment() error {
	if err := l.finishSegment(); err != nil {
		return err
	}
	l.index.sets.Lock()
	loose := slices.Clone(l.index.sets.loose[:min(l.o.segment, len(l.index.sets.loose))])
	l.index.sets.Unlock()
	var (
		ids     []byte
		words   int
		buckets [1 << bucketBits][]uint32
	)
	for place, id := range loose {
		list, err := l.value(wordsKey(id))
		if err != nil {
			return err
		}
		ids = append(ids, id...)
		for ; len(list) >= 4; list = list[4:] {
			h := binary.LittleEndian.Uint32(list)
			buckets[h>>restBits] = append(buckets[h>>restBits], entry(h, place))
			words++
		}
		if words >= segmentWords {
			break
		}
	}
	s := segment{first: string(ids[:idSize]), last: string(ids[len(ids)-idSize:])}
	if err := l.commit(write{buildingKey, []byte(s.name())}); err != nil {
		return err
	}
	var batch []write
	size := 0
	for bucket, entries := range buckets {
		if len(entries) == 0 {
			continue
		}
		slices.Sort(entries)
		chunk := make([]byte, 0, 4*len(entries))
		for _, e := range entries {
			chunk = binary.LittleEndian.AppendUint32(chunk, e)
		}
		batch = append(batch, write{chunkKey(wordHash(bucket), s), chunk})
		if size += len(chunk); size > 64<<10 { // sessions that record wait for it
			if err := l.commit(batch...); err != nil {
				return err
			}
			batch, size = nil, 0
		}
	}
	if err := l.commit(append(batch, write{segmentKey(s), ids})...); err != nil {
		return err
	}
	return l.finishSegment()
}

// finishSegment ends the making of a segment: if it is there, what it was made of is
// not needed; if it is not, for the process died, what there is of it is void.
func (l *Log) finishSegment() error {
	name, err := l.value(buildingKey)
	if err != nil || name == nil {
		return err
	}
	s := segmentOf(string(name))
	ids, err := l.value(segmentKey(s))
	if err != nil {
		return err
	}
	if ids == nil {
		return l.dropSegment(s)
	}
	var gone []write
	for rest := ids; len(rest) >= idSize; rest = rest[idSize:] {
		gone = append(gone, write{key: wordsKey(string(rest[:idSize]))})
	}
	if err := l.commit(append(gone, write{key: buildingKey})...); err != nil {
		return err
	}
	sets := &l.index.sets
	sets.Lock()
	defer sets.Unlock()
	sets.loose = slices.DeleteFunc(sets.loose, func(id string) bool { return s.first <= id && id <= s.last && isIn(ids, id) })
	return nil
}

// isIn reports whether an id is in a sorted list of ids, one behind the other.
func isIn(ids []byte, id string) bool {
	i := sort.Search(len(ids)/idSize, func(i int) bool { return string(ids[i*idSize:(i+1)*idSize]) >= id })
	return i < len(ids)/idSize && string(ids[i*idSize:(i+1)*idSize]) == id
}

// dropSegments deletes the segments of which no session is left.
func (l *Log) dropSegments() error {
	segments, err := l.segments()
	if err != nil {
		return err
	}
	for _, s := range segments {
		left, err := l.isUsed(s)
		if err != nil {
			return err
		}
		if !left {
			if err := l.dropSegment(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Log) isUsed(s segment) (bool, error) {
	ids, err := l.value(segmentKey(s))
	for ; len(ids) >= idSize && err == nil; ids = ids[:len(ids)-idSize] {
		var session []byte
		if session, err = l.value(sessionKey(string(ids[len(ids)-idSize:]))); session != nil {
			return true, nil
		}
	}
	return false, err
}

// dropSegment deletes a segment: first what makes it one.
func (l *Log) dropSegment(s segment) error {
	if err := l.commit(write{key: segmentKey(s)}, write{buildingKey, []byte(s.name())}); err != nil {
		return err
	}
	var gone []write
	for bucket := range wordHash(1 << bucketBits) {
		gone = append(gone, write{key: chunkKey(bucket, s)})
	}
	return l.commit(append(gone, write{key: buildingKey})...)
}

// segments returns the segments, the one with the newest session first.
func (l *Log) segments() (all []segment, err error) {
	err = l.keys([]byte("x/g/"), func(name string) bool {
		all = append(all, segmentOf(name))
		return true
	})
	slices.Reverse(all)
	return all, err
}
