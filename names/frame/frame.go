// SPDX-License-Identifier: Apache-2.0

// Package frame is DNS over TCP as a stream of bytes: messages with their length
// in front (RFC 1035 section 4.2.2), any number of them one behind the other, in
// any pieces (RFC 7766 section 8). It makes no system call.
package frame

import (
	"encoding/binary"
	"errors"
)

const (
	// MaxRead is the most that may be added to a Reader at a time, in bytes: as much
	// as one read of the socket should ask for.
	MaxRead = 4096
	// Prefix is the length in front of each message, in bytes.
	Prefix = 2

	// keep is how large an empty buffer may be to be kept for the next message.
	keep = 1024
)

// ErrLength: a message is longer than the reader takes, or has no header.
var ErrLength = errors.New("frame: length of a message out of bounds")

// minMessage is the header of a message, RFC 1035 section 4.1.1.
const minMessage = 12

// Reader puts the pieces of a stream together. The zero value takes nothing; see
// NewReader.
type Reader struct {
	max  int
	buf  []byte
	from int // what is before it has been handed out
}

// NewReader returns a reader of messages of at most max bytes.
func NewReader(max int) *Reader { return &Reader{max: max} }

// Add takes a piece of the stream, which it copies. It reports false, and takes
// nothing, if there is more than a reader holds: who adds has not waited until
// Next had no more messages.
func (r *Reader) Add(p []byte) bool {
	if len(p) > MaxRead || len(r.buf)-r.from >= Prefix+r.max {
		return false
	}
	if r.from > 0 {
		r.buf = append(r.buf[:0], r.buf[r.from:]...)
		r.from = 0
	}
	r.buf = append(r.buf, p...)
	return true
}

// Next returns the next message, valid until Add. There is none, and no error, if
// more of the stream has to come first. After an error nothing follows: where the
// next message begins is not known.
func (r *Reader) Next() (msg []byte, err error) {
	rest := r.buf[r.from:]
	if len(rest) < Prefix {
		r.release()
		return nil, nil
	}
	n := int(binary.BigEndian.Uint16(rest))
	if n < minMessage || n > r.max {
		return nil, ErrLength
	}
	if len(rest) < Prefix+n {
		return nil, nil
	}
	r.from += Prefix + n
	return rest[Prefix : Prefix+n : Prefix+n], nil
}

// release gives back memory of a large message where nothing is left.
func (r *Reader) release() {
	if len(r.buf) == r.from {
		r.from = 0
		if r.buf = r.buf[:0]; cap(r.buf) > keep {
			r.buf = nil
		}
	}
}

// Buffered returns how many bytes wait for the rest of their message, or for Next.
func (r *Reader) Buffered() int { return len(r.buf) - r.from }

// Append appends a message to dst with its length in front. The message has at most
// 65,535 bytes.
func Append(dst, msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(msg))), msg...)
}

// MaxQueue is the most that a Queue holds, in bytes. Who does not read for longer
// has left.
const MaxQueue = 64 << 10

// Queue holds what a socket has not taken yet.
type Queue struct {
	buf  []byte
	from int
}

// Add copies p behind what waits. It reports false, and takes nothing, if that
// would be more than MaxQueue.
func (q *Queue) Add(p []byte) bool {
	if q.Len()+len(p) > MaxQueue {
		return false
	}
	if q.from > 0 {
		q.buf = append(q.buf[:0], q.buf[q.from:]...)
		q.from = 0
	}
	q.buf = append(q.buf, p...)
	return true
}

// Bytes is what waits, valid until Add.
func (q *Queue) Bytes() []byte { return q.buf[q.from:] }

// Len is how many bytes wait.
func (q *Queue) Len() int { return len(q.buf) - q.from }

// Wrote takes away n bytes, which the socket has taken.
func (q *Queue) Wrote(n int) {
	if q.from += n; q.from >= len(q.buf) {
		q.buf, q.from = nil, 0
	}
}
