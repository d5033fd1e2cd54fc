// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/link"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// sink is an environment that costs nothing: its sockets take and hold any
// number of bytes, its link takes any frame.
type sink struct {
	now     int64
	open    ipc.Open
	last    packet.Offload
	sent    int // bytes of payload to the guest
	frames  int
	seq     uint32 // behind the last frame
	written int
	unread  int // in the receive queue of every socket
	off     int // SO_PEEK_OFF
	closed  int
}

func (s *sink) Now() int64                                { return s.now }
func (s *sink) CanSend() bool                             { return true }
func (s *sink) Open(r *ipc.Open) bool                     { s.open = *r; return true }
func (s *sink) Close(int32)                               { s.closed++ }
func (s *sink) Abort(int32)                               { s.closed++ }
func (s *sink) TakeError(int32) syscall.Errno             { return 0 }
func (s *sink) RTT(int32) (time.Duration, syscall.Errno)  { return 0, 0 }
func (s *sink) Path(int32) (flow.Path, syscall.Errno)     { return flow.Path{}, 0 }
func (s *sink) Watch(int32, uint64, uint32) syscall.Errno { return 0 }

func (s *sink) Rewatch(int32, uint64, uint32) syscall.Errno { return 0 }
func (s *sink) ShutdownWrite(int32) syscall.Errno           { return 0 }

func (s *sink) Send(o *packet.Offload, headers, payload []byte) bool {
	s.last = *o
	s.sent += len(payload)
	s.frames++
	h := headers[o.CsumStart:]
	s.seq = uint32(h[4])<<24 | uint32(h[5])<<16 | uint32(h[6])<<8 | uint32(h[7])
	s.seq += uint32(len(payload)) + uint32(h[13]&1) + uint32(h[13]>>1&1)
	return true
}

func (s *sink) Recv(_ int32, b []byte, _ int) (int, syscall.Errno) {
	n := min(len(b), s.unread-s.off)
	if n <= 0 {
		return 0, syscall.EAGAIN
	}
	s.off += n
	return n, 0
}

func (s *sink) Reserve(*packet.Ends, uint16, uint16, int, int) [][]byte { return nil }
func (s *sink) SendReserved(*packet.Offload, []byte, int) bool          { return false }

func (s *sink) RecvPieces(int32, [][]byte, int) (int, syscall.Errno) { return 0, syscall.EAGAIN }

func (s *sink) Discard(_ int32, n int) (int, syscall.Errno) {
	s.unread -= n
	s.off = max(s.off-n, 0)
	return n, 0
}

func (s *sink) Write(_ int32, b []byte) (int, syscall.Errno) {
	s.written += len(b)
	return len(b), 0
}

func (s *sink) Copyv(_ int32, bufs [][]byte) (int, syscall.Errno) { return s.Writev(0, bufs) }

func (s *sink) Wrote(int) {}

func (s *sink) Writev(_ int32, bufs [][]byte) (int, syscall.Errno) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	s.written += n
	return n, 0
}

func (s *sink) Option(_ int32, o flow.Option, v int) syscall.Errno {
	if o == flow.OptionPeekOff {
		s.off = v
	}
	return 0
}

func (s *sink) RecvSkip(int32, int, []byte) (int, syscall.Errno) { return 0, syscall.EAGAIN }
func (s *sink) Accept(int32) (int32, packet.Addr, uint16, syscall.Errno) {
	return -1, packet.Addr{}, 0, syscall.EAGAIN
}

// load drives one translator over a sink.
type load struct {
	sink
	t     *Translator
	wheel *store.Wheel
	p     packet.Packet
	s     packet.TCP
	token uint64
	seq   uint32
	data  [64 << 10]byte
}

func newLoad(mtu uint16) *load {
	l := &load{}
	l.now = 1e9
	g := &flow.Guest{Config: ipc.Config{
		Flags: ipc.FlagIPv4 | ipc.FlagTCP | ipc.FlagPeekOff4 | ipc.FlagPeekOff6, MTU: mtu, OurMAC: ourMAC, Our4: our4,
	}, Traits: link.TraitsOf(ipc.LinkTap), MAC: guestMAC, Seen4: guest4}
	l.wheel = store.NewWheel(64, l.now)
	l.t = New(&l.sink, g, l.wheel, 0, store.NewPool(make([]byte, 256*store.ChunkSize)), 64)
	l.p = packet.Packet{SrcMAC: guestMAC, DstMAC: ourMAC, IPVersion: 4, Proto: packet.ProtoTCP, Src: guest4, Dst: remote4}
	return l
}

// input is one segment, acknowledging all that was sent.
func (l *load) input(flags uint8, n int) {
	l.s = packet.TCP{SrcPort: guestPort, DstPort: remotePort, Flags: flags, Seq: l.seq, Window: 0xffff, WScale: -1, Payload: l.data[:n]}
	if flags&packet.ACK != 0 {
		l.s.Ack = l.sink.seq
	}
	if flags&packet.SYN != 0 {
		l.s.MSS, l.s.WScale, l.s.SACKPermitted = 65480, 10, true
		l.seq++
	}
	if flags&packet.FIN != 0 {
		l.seq++
	}
	l.seq += uint32(n)
	l.t.Input(&l.p, &l.s)
}

func (l *load) dial() {
	l.input(packet.SYN, 0)
	l.token = l.open.Token
	l.t.Opened(l.token, 100, &ipc.Opened{})
	l.input(packet.ACK, 0)
	l.t.Flush()
}

// up is a batch of n segments of bulk data from the guest.
func (l *load) up(n, size int) {
	for range n {
		l.input(packet.ACK, size)
	}
	l.t.Flush()
	l.now += 10_000
}

// bulk opens a connection and has its window grow.
func (l *load) bulk() {
	l.dial()
	for range 200 {
		l.up(1, 60000)
	}
}

// down is size bytes from the host, acknowledged.
func (l *load) down(size int) {
	l.unread += size
	l.t.Ready(l.token, flow.Readable|flow.Writable)
	for l.t.Pending() {
		l.t.Poll()
	}
	l.input(packet.ACK, 0)
	l.t.Flush()
	l.now += 10_000
}

// cycle is a whole connection: opened by the guest, a request and an answer,
// closed by the guest.
func (l *load) cycle() {
	l.unread, l.off = 0, 0
	l.dial()
	l.up(1, 100)
	l.down(1000)
	l.input(packet.FIN|packet.ACK, 0)
	l.t.Flush()
	l.t.Opened(l.token, -1, &ipc.Opened{}) // late and of no use
	l.t.flows.At(l.index()).set(flagHostClosed)
	l.eof()
	l.t.Sweep()
	l.seq += 64000
}

func (l *load) index() uint32 {
	_, _, i := flow.SplitToken(l.token)
	return i
}

// eof has the host close: a peek that finds nothing is the end then.
func (l *load) eof() {
	c := l.t.flows.At(l.index())
	l.t.hostEOF(c, c.sndNxt)
	l.t.push(l.index(), c)
	l.input(packet.ACK, 0)
	l.t.Flush()
}

// Nothing on the packet path allocates.
func TestAllocations(t *testing.T) {
	check := func(name string, f func()) {
		t.Helper()
		for range 100 {
			f() // windows grow first
		}
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	for _, mtu := range []uint16{1500, 65520} {
		l := newLoad(mtu)
		l.bulk()
		check("bulk up, large segments", func() { l.up(4, 60000) })
		check("bulk up, small segments", func() { l.up(100, 1448) })
		check("bulk down", func() { l.down(1 << 20) })
		check("request and response", func() { l.up(1, 100); l.down(200) })
		check("out of order", func() {
			l.seq += 1000
			l.up(3, 1000)
			l.seq -= 4000
			l.up(1, 1000)
			l.seq += 3000
		})
		check("timers", func() {
			l.down(100)
			l.now += second
			l.wheel.Advance(l.now, l.t.Timer)
		})
		if l.t.Stats.Reset != 0 || l.t.Len() != 1 {
			t.Fatalf("the flow has ended: %+v", l.t.Stats)
		}
		if c := l.t.flows.At(l.index()); c.rcvNxt != l.seq || c.sndUna != c.sndMax || l.t.Stats.OutOfWindow != 0 {
			t.Fatalf("not all was taken: %+v", *c)
		}
	}
	l := newLoad(1500)
	check("open and close", l.cycle)
	if l.t.Len() != 0 || l.t.Stats.Opened < 300 || l.closed != int(l.t.Stats.Opened) || l.t.Stats.Reset != 0 {
		t.Errorf("%d flows left, %d closed: %+v", l.t.Len(), l.closed, l.t.Stats)
	}
	check("no flow", func() {
		l.input(packet.ACK, 100)
		l.t.Flush()
	})
}

func benchmarkUp(b *testing.B, n, size int) {
	l := newLoad(65520)
	l.bulk()
	b.SetBytes(int64(n * size))
	b.ReportAllocs()
	for b.Loop() {
		l.up(n, size)
	}
	if l.written < b.N*n*size {
		b.Fatal("not all was written")
	}
}

// BenchmarkInput is a batch of segments in order, the payload not touched.
func BenchmarkInput(b *testing.B) {
	b.Run("1x60000", func(b *testing.B) { benchmarkUp(b, 1, 60000) })
	b.Run("4x60000", func(b *testing.B) { benchmarkUp(b, 4, 60000) })
	b.Run("64x1448", func(b *testing.B) { benchmarkUp(b, 64, 1448) })
	b.Run("1x100", func(b *testing.B) { benchmarkUp(b, 1, 100) })
}

// BenchmarkAckPush is what the host says, sent and acknowledged.
func BenchmarkAckPush(b *testing.B) {
	for _, size := range []int{100, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := newLoad(1500)
			l.dial()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				l.down(size)
			}
			if l.sent < b.N*size {
				b.Fatal("not all was sent")
			}
		})
	}
}

// BenchmarkOpenClose is a connection with one request and answer.
func BenchmarkOpenClose(b *testing.B) {
	l := newLoad(1500)
	b.ReportAllocs()
	for b.Loop() {
		l.cycle()
	}
}
