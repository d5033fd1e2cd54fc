// SPDX-License-Identifier: Apache-2.0

// Package stage looks at the first bytes of flows, for the broker: which server a
// client means (package hello). It reads them from a pair of sockets of which the
// worker has the other end, tells what it has found, and, if the broker gives it the
// socket to the destination, writes there what it has read. It never reads from that.
// What a name means is not its to say.
//
// Of flows that go by a proxy (package proxy) it gets the socket first, before the guest
// has one, and reads nothing from that but the proxy's answer.
//
// Package stage makes no system calls: Env does.
package stage

import (
	"syscall"

	"aldente/ipc"
	"aldente/names/hello"
	"aldente/names/proxy"
)

// Env is what Flows ask of the loop that they live in. No call blocks.
type Env interface {
	// Tell sends the broker a record.
	Tell(rec []byte)
	// Read is read(2). It returns zero or the error number.
	Read(fd int, b []byte) (int, syscall.Errno)
	// Write is write(2), as Read.
	Write(fd int, b []byte) (int, syscall.Errno)
	// Watch has the loop call Ready with id for as long as there is something to read,
	// or with writable there is room to write.
	Watch(fd int, id uint32, writable bool) syscall.Errno
	// Unwatch ends that.
	Unwatch(fd int)
	// Close closes a descriptor, which ends its watch, too.
	Close(fd int)
}

// Flows are those that are looked at. There are ipc.MaxStages at most, and each keeps
// what it has read, ipc.MaxStaged bytes or maxDatagrams.
type Flows struct {
	env   Env
	flows map[uint32]*flow
	buf   []byte
	proxy *proxy.Config // nil: none
}

// maxDatagrams is how many bytes of datagrams a flow may keep.
const maxDatagrams = 48 << 10

// maxMessage is the longest message that the worker writes.
const maxMessage = 64 << 10

// flow is one that is looked at.
type flow struct {
	id     uint32
	pair   int // the end of the pair, -1: none
	socket int // to the destination, or the proxy; -1: none yet
	told   bool
	// watched tells that the socket is watched: for room, or with a proxy and without
	// writable for something to read.
	watched, writable bool

	tls   *hello.TLS // one of them
	quic  *hello.QUIC
	proxy *proxy.Client

	kept    []byte // all that was read
	lengths []int  // of datagrams in kept, with quic
	sent    int    // bytes of kept, or datagrams, that are written
}

// New makes an empty set of flows.
func New(env Env) *Flows {
	return &Flows{env: env, flows: map[uint32]*flow{}, buf: make([]byte, maxMessage)}
}

// Len is how many flows are looked at.
func (f *Flows) Len() int { return len(f.flows) }

// Begin has a flow looked at that comes by a descriptor, which is ours from then on.
func (f *Flows) Begin(s *ipc.Stage, fd int) {
	w := &flow{id: s.ID, pair: fd, socket: -1}
	switch s.What {
	case ipc.StageTLS:
		w.tls = new(hello.TLS)
	case ipc.StageQUIC:
		w.quic = new(hello.QUIC)
	}
	if _, twice := f.flows[s.ID]; twice || len(f.flows) == ipc.MaxStages || f.env.Watch(fd, s.ID, false) != 0 {
		f.env.Tell((&ipc.Staged{ID: s.ID, Found: ipc.FoundNoRoom}).Encode())
		f.env.Close(fd)
		return
	}
	f.flows[s.ID] = w
	f.read(w)
}

// Ready goes on with a flow.
func (f *Flows) Ready(id uint32) {
	w := f.flows[id]
	switch {
	case w == nil:
	case w.proxy != nil:
		f.relay(w)
	case w.socket >= 0:
		f.write(w)
	case !w.told:
		f.read(w)
	}
}

// Socket takes the socket to the destination, to which what was read is written. It
// comes for a flow of which Staged has told a name; for others it is closed.
func (f *Flows) Socket(s *ipc.StageSocket, fd int) {
	w := f.flows[s.ID]
	if w == nil || !w.told || w.socket >= 0 {
		f.env.Close(fd)
		return
	}
	w.socket = fd
	f.write(w)
}

// End forgets a flow.
func (f *Flows) End(s *ipc.StageEnd) {
	if w := f.flows[s.ID]; w != nil {
		f.drop(w)
	}
}

func (f *Flows) drop(w *flow) {
	if w.pair >= 0 {
		f.env.Close(w.pair)
	}
	if w.proxy != nil {
		w.proxy.Wipe()
	}
	if w.socket >= 0 {
		f.env.Close(w.socket)
	}
	delete(f.flows, w.id)
}

// read takes what has come, until it is known what it is.
func (f *Flows) read(w *flow) {
	for {
		n, e := f.env.Read(w.pair, f.buf)
		if e == syscall.EAGAIN {
			return
		}
		found := uint8(ipc.FoundEnd)
		if e == 0 && n > 0 {
			found = w.take(f.buf[:n])
		}
		if found != 0 {
			f.tell(w, found)
			return
		}
	}
}

// take keeps what has come, and returns one of ipc.Found* once it is known.
func (w *flow) take(b []byte) uint8 {
	if w.tls != nil {
		// No more than is looked at: the worker has all of it.
		b = b[:min(len(b), ipc.MaxStaged-len(w.kept))]
		w.kept = append(w.kept, b...)
		if found := w.tls.Read(b); found != 0 || len(w.kept) < ipc.MaxStaged {
			return found
		}
		return ipc.FoundTooLong
	}
	if len(w.kept)+len(b) > maxDatagrams {
		return ipc.FoundTooLong
	}
	w.kept = append(w.kept, b...)
	w.lengths = append(w.lengths, len(b))
	return w.quic.Read(b) // which writes over it
}

// tell says what was found. Without a name, that is the end.
func (f *Flows) tell(w *flow, found uint8) {
	r := ipc.Staged{ID: w.id, Found: found}
	if found == ipc.FoundName {
		name := ""
		if w.tls != nil {
			name = w.tls.Name()
		} else {
			name = w.quic.Name()
		}
		r.Name, _ = ipc.MakeName(name) // which is not longer than fits
	}
	w.told = true
	f.env.Tell(r.Encode())
	if found != ipc.FoundName {
		f.drop(w)
		return
	}
	f.env.Unwatch(w.pair) // what follows the worker keeps
}

// write writes what was read to the socket, as far as that takes it, and says so at the
// end. A datagram that is not taken is lost, as on any way.
func (f *Flows) write(w *flow) {
	p := ipc.Passed{ID: w.id}
	if w.quic != nil {
		for _, n := range w.lengths {
			_, _ = f.env.Write(w.socket, w.kept[:n])
			w.kept = w.kept[n:]
		}
		p.Count = uint32(len(w.lengths))
	}
	for w.tls != nil && w.sent < len(w.kept) {
		n, e := f.env.Write(w.socket, w.kept[w.sent:])
		if e == syscall.EAGAIN {
			if w.watched {
				return
			}
			w.watched = true
			if e = f.env.Watch(w.socket, w.id, true); e == 0 {
				return
			}
		}
		if e != 0 {
			p.Errno = uint16(e)
			break
		}
		w.sent += n
	}
	if p.Errno == 0 && w.tls != nil {
		p.Count = uint32(w.sent)
	}
	f.env.Tell(p.Encode())
	f.drop(w)
}
