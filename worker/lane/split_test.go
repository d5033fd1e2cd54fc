// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math/rand/v2"

	"aldente/ipc"
	"aldente/worker/link"
	"aldente/worker/packet"
)

// splitter is a link whose frames come in pieces now and then, as those do that
// lie in a guest's memory: what is behind the headers is the guest's, who writes
// something else there as soon as it may.
type splitter struct {
	link.Link
	r      *rand.Rand
	pieces [link.MaxFrames * 8][]byte
	lent   [][]byte // of those, in frames that are in use

	memory   [256 << 10]byte // what is reserved
	room     [8][]byte
	reserved [][]byte
}

// Frames that came in pieces, and that went out from reserved memory.
var splits, direct int

func newSplitter(l link.Link) *splitter {
	return &splitter{Link: l, r: rand.New(rand.NewPCG(1, 2))}
}

func (s *splitter) Receive(b *link.Batch) (bool, error) {
	s.takeBack()
	more, err := s.Link.Receive(b)
	if b.Whole {
		return more, err
	}
	for k := range b.Frames {
		f := &b.Frames[k]
		n := packet.TCPHeaders(f.Data)
		if n == 0 || n == len(f.Data) || s.r.IntN(2) == 0 {
			continue
		}
		n += s.r.IntN(len(f.Data) - n)
		f.Data, f.More = f.Data[:n:n], s.cut(f.Data[n:])
		splits++
	}
	return more, err
}

// cut makes one to eight pieces, some of which may be empty.
func (s *splitter) cut(b []byte) [][]byte {
	first := len(s.lent)
	s.lent = s.pieces[:first]
	for range s.r.IntN(8) {
		n := s.r.IntN(len(b) + 1)
		s.lent = append(s.lent, b[:n:n])
		b = b[n:]
	}
	s.lent = append(s.lent, b)
	return s.lent[first:]
}

func (s *splitter) takeBack() {
	for _, b := range s.lent {
		clear(b)
	}
	s.lent = s.pieces[:0]
}

func (s *splitter) Flush() error {
	s.takeBack()
	return s.Link.Flush()
}

// Reserve offers its memory now and then, sometimes less than is asked for.
func (s *splitter) Reserve(_ *packet.Ends, _, _ uint16, _, n int) [][]byte {
	s.reserved = nil
	if s.r.IntN(4) == 0 || !s.CanSend() {
		return nil
	}
	b := s.memory[:n-n/3*s.r.IntN(2)]
	s.reserved = s.room[:0]
	for range s.r.IntN(7) {
		k := s.r.IntN(len(b) + 1)
		s.reserved = append(s.reserved, b[:k:k])
		b = b[k:]
	}
	s.reserved = append(s.reserved, b)
	return s.reserved
}

func (s *splitter) Send(o *packet.Offload, headers, payload []byte) bool {
	s.reserved = nil
	return s.Link.Send(o, headers, payload)
}

func (s *splitter) SendReserved(o *packet.Offload, headers []byte, n int) bool {
	if s.reserved == nil || n == 0 {
		panic("nothing is reserved")
	}
	direct++
	ok := s.Send(o, headers, s.memory[:n])
	clear(s.memory[:])
	return ok
}

// splitFrames has the lane's link be one of those.
func (w *world) splitFrames() {
	if l := w.l.link; l != nil && w.kind != ipc.LinkVhostUser {
		if _, ok := l.(*splitter); !ok {
			s := newSplitter(l)
			w.l.link, w.l.direct = s, s
		}
	}
}
