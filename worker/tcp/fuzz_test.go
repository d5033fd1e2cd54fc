// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// script runs a test that a string of bytes describes: a guest that sends any
// segment it likes, near the numbers that matter, and a host that does what it
// likes. Whatever happens, bytes are neither lost nor changed, memory stays
// within bounds, nothing is left over, and there is always something to wait
// for.
type script struct {
	*env
	in       []byte
	answered int
	listener *sock
}

const scriptPorts = 3 // few, so that flows meet their predecessors

func (x *script) byte() byte {
	if len(x.in) == 0 {
		return 0
	}
	b := x.in[0]
	x.in = x.in[1:]
	return b
}

func (x *script) word() uint32 {
	var b [4]byte
	x.in = x.in[copy(b[:], x.in):]
	return binary.LittleEndian.Uint32(b[:])
}

// size is a length from a byte: exact when small, up to 64 KiB.
func (x *script) size() int {
	b := int(x.byte())
	if b < 128 {
		return b
	}
	return min((b-127)*(b-127)*4, 65000)
}

// near is a number from a byte: at base or around it.
func (x *script) near(base uint32) uint32 {
	switch b := x.byte(); {
	case b < 128:
		return base
	case b < 192:
		return base + uint32(b-160)
	case b < 254:
		return base + uint32(int32(b-224)*1000)
	}
	return x.word()
}

// host picks a socket that is in use.
func (x *script) host() *sock {
	k := int(x.byte())
	for range x.socks {
		s := x.socks[k%len(x.socks)]
		if s.handed && s.closes == 0 && !s.listening {
			return s
		}
		k++
	}
	return nil
}

func (x *script) step() {
	switch op := x.byte() % 16; op {
	case 0, 1, 2, 3, 4:
		x.segment(op)
	case 5:
		x.segment(op)
		x.flush()
		x.settle()
	case 6:
		x.flush()
		x.settle()
	case 7:
		if s := x.host(); s != nil && !s.connecting && !s.rxFIN {
			s.say(x.size() * 3)
		}
	case 8:
		if s := x.host(); s != nil && !s.connecting {
			s.fin()
		}
	case 9:
		if s := x.host(); s != nil && s.txRoom >= 0 {
			s.free(x.size())
		}
	case 10:
		x.flush()
		x.advance(ms << (x.byte() % 20))
	case 11:
		x.flush()
		if n := int(x.byte()); n < 8 {
			x.room, x.unaware = n, n%2 == 0
		} else {
			x.open(-1)
			x.settle()
		}
	case 12, 13:
		x.flush()
		x.reply()
	case 14:
		x.flush()
		s := x.newSock()
		s.rcvBuf, s.txRoom = 1+x.size(), x.size()
		x.listener.arrive(s, remote4, uint16(1000+int(x.byte())%scriptPorts))
		x.settle()
	case 15:
		if s := x.host(); s != nil && x.byte() > 200 {
			s.fail(syscall.ECONNRESET)
		}
	}
}

// reply is the broker's next answer, or the end of a connect.
func (x *script) reply() {
	b := x.byte()
	if b < 32 {
		if s := x.host(); s != nil && s.connecting {
			s.connected()
		}
		x.settle()
		return
	}
	if x.answered == len(x.opens) {
		return
	}
	if b > 240 {
		x.answer(x.answered, ipc.Opened{Errno: uint16(syscall.ECONNREFUSED)}, nil)
	} else {
		s := x.newSock()
		s.rcvBuf, s.txRoom = 1+x.size(), x.size()
		s.connecting = b > 200
		o := ipc.Opened{}
		if s.connecting {
			o.Flags = ipc.OpenedInProgress
		}
		s.handed = true
		x.answer(x.answered, o, s)
	}
	x.answered++
	x.settle()
}

// segment is one from the guest: a good one, but for what the bytes say.
func (x *script) segment(op byte) {
	port := uint16(x.byte()) % scriptPorts
	guest, remote := 2000+port, uint16(1000)
	if port > 0 {
		guest, remote = guestPort, 1000+port
	}
	flags := x.byte()
	s := packet.TCP{SrcPort: guest, DstPort: remote, Flags: packet.ACK, Window: 0xffff, WScale: -1}
	if op == 0 {
		s.Flags = flags & (packet.FIN | packet.SYN | packet.RST | packet.ACK | packet.URG)
	}
	if flags > 230 {
		s.Flags |= packet.FIN
	}
	k := store.MakeKey(&remote4, &guest4, remote, guest)
	i := x.tr.flows.Find(&k)
	if i == store.None {
		s.Flags = packet.SYN
		s.Seq, s.MSS, s.WScale, s.SACKPermitted = x.word(), uint16(x.word()), int8(flags%16)-1, flags&64 != 0
		x.input(guest4, remote4, s)
		return
	}
	c := x.tr.flows.At(i)
	s.Seq, s.Ack = c.rcvNxt, c.sndMax
	if s.Flags&packet.SYN != 0 {
		s.MSS, s.WScale = 1460, 3
	}
	if c.state == stateSynSent && op > 0 {
		s.Flags |= packet.SYN
		s.Seq, s.MSS, s.WScale, s.SACKPermitted = x.word(), 1460, 7, true
	}
	if op > 0 && s.Flags&packet.SYN == 0 {
		s.Payload = make([]byte, x.size())
	}
	if op > 1 {
		s.Seq = x.near([]uint32{c.rcvNxt, c.rcvEdge, c.hostSeq, c.rcvNxt - 1}[x.byte()%4])
	}
	if op > 2 {
		s.Ack = x.near([]uint32{c.sndMax, c.sndUna, c.sndNxt, c.finSeq}[x.byte()%4])
	}
	if op > 3 {
		s.Window = uint16(x.size())
		for s.NumSACK = 0; s.NumSACK < int(flags%5) && s.NumSACK < 4; s.NumSACK++ {
			left := x.near(c.sndUna)
			s.SACK[s.NumSACK] = packet.SACKBlock{Left: left, Right: left + uint32(x.size())}
		}
	}
	x.fill(c, &s)
	x.input(guest4, remote4, s)
}

// fill gives the payload the bytes that belong at its place.
func (x *script) fill(c *conn, s *packet.TCP) {
	if c.fd < 0 || len(s.Payload) == 0 {
		return
	}
	at := x.sock(c.fd).txTotal + int(int32(s.Seq-c.hostSeq))
	b := s.Payload
	if at < 0 {
		k := min(-at, len(b))
		b, at = b[k:], 0
	}
	copy(b, stream(at, len(b)))
}

// sees checks the bytes of each segment to the guest.
func (x *script) sees(i uint32, f *frame, n int) {
	if i == store.None {
		return
	}
	c := x.tr.flows.At(i)
	if n > 0 {
		at := x.sock(c.fd).rxBase + int(int32(f.tcp.Seq-c.deqSeq))
		for k := 0; k < n; k += 1 << 15 {
			m := min(n-k, 1<<15)
			if !bytes.Equal(f.tcp.Payload[k:k+m], stream(at+k, m)) {
				x.t.Fatalf("wrong bytes to the guest at %d", at+k)
			}
		}
	}
	if c.state == stateOpen && f.tcp.Flags&packet.RST == 0 && f.tcp.Ack != c.rcvNxt {
		x.t.Fatalf("acknowledges %d, received up to %d", f.tcp.Ack, c.rcvNxt)
	}
}

func (x *script) run() {
	x.listener = x.listen(1, guestPort)
	x.onSend = x.sees
	for len(x.in) > 0 {
		x.step()
		x.frames = x.frames[:0]
	}
	x.flush()
	x.open(-1)
	x.settle()
	// Nothing that the guest leaves behind stays for ever, but what only its
	// application or the host's may end.
	x.advance(3600 * second)
	x.tr.RemoveListener(1) // as long as it is there, those who wait take the place of those who go
	for ; x.answered < len(x.opens); x.answered++ {
		x.answer(x.answered, ipc.Opened{Errno: uint16(syscall.ECONNREFUSED)}, nil)
	}
	for _, s := range x.socks {
		if s.handed && s.closes == 0 && !s.listening {
			s.fail(syscall.ECONNRESET)
		}
	}
	x.settle()
	x.advance(10 * second)
	x.empty()
}

func runScript(t testing.TB, in []byte) {
	if len(in) == 0 {
		return
	}
	opts := []option{withFlows(4), withPool(simPool), withMTU([]uint16{1500, 65520, 576}[in[0]%3])}
	if in[0]&128 != 0 {
		opts = append(opts, withoutPeekOff)
	}
	(&script{env: newEnv(t, opts...), in: in[1:]}).run()
}

// FuzzConnection takes any bytes for a script.
func FuzzConnection(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 4096 {
			runScript(t, in)
		}
	})
}

// TestRandomScripts runs scripts of random bytes.
func TestRandomScripts(t *testing.T) {
	r := rand.New(rand.NewPCG(*first, 2))
	for k := range *seeds {
		in := make([]byte, 50+r.IntN(1500))
		for j := range in {
			in[j] = byte(r.Uint32())
		}
		ok := t.Run("", func(t *testing.T) { runScript(t, in) })
		if !ok {
			t.Fatalf("script %d: %x", k, in)
		}
	}
}
