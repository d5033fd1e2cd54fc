// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

func TestRefused(t *testing.T) {
	tests := []struct {
		name       string
		e          syscall.Errno
		flags      uint16
		v4, v6     [2]uint8 // type and code
		silent     bool
		remembered bool
	}{
		{"rules", syscall.EACCES, ipc.OpenedProhibited, [2]uint8{3, 13}, [2]uint8{1, 1}, false, true},
		{"rules, with another number", syscall.EINVAL, ipc.OpenedProhibited, [2]uint8{3, 13}, [2]uint8{1, 1}, false, true},
		{"refused", syscall.ECONNREFUSED, 0, [2]uint8{3, 3}, [2]uint8{1, 4}, false, true},
		{"no route", syscall.ENETUNREACH, 0, [2]uint8{3, 0}, [2]uint8{1, 0}, false, true},
		{"network down", syscall.ENETDOWN, 0, [2]uint8{3, 0}, [2]uint8{1, 0}, false, true},
		{"no address", syscall.EADDRNOTAVAIL, 0, [2]uint8{3, 0}, [2]uint8{1, 0}, false, true},
		{"too fast", syscall.EAGAIN, 0, [2]uint8{}, [2]uint8{}, true, false},
		{"no host", syscall.EHOSTUNREACH, 0, [2]uint8{3, 1}, [2]uint8{1, 3}, false, true},
		{"other", syscall.EINVAL, 0, [2]uint8{}, [2]uint8{}, true, true},
		{"no descriptors", syscall.EMFILE, 0, [2]uint8{}, [2]uint8{}, true, false},
	}
	for _, tt := range tests {
		for _, remote := range []packet.Addr{remote4, remote6} {
			t.Run(fmt.Sprint(tt.name, remote.Is4()), func(t *testing.T) {
				r := newRig(t)
				r.say(remote, "first")
				r.say(remote, "second")
				r.refuse(r.oneOpen(), tt.e, tt.flags)
				want := icmpError{src: our6, dst: guest6, typ: tt.v6[0], code: tt.v6[1],
					qsrc: guest6, qdst: remote, qsrcPort: 1000, qdstPort: 2000, qdata: "first"}
				if remote.Is4() {
					want.src, want.dst, want.qsrc = our4, guest4, guest4
					want.typ, want.code = tt.v4[0], tt.v4[1]
				}
				var wants []icmpError
				if !tt.silent {
					wants = append(wants, want)
				}
				if diff := cmp.Diff(wants, r.errors(), cmp.AllowUnexported(icmpError{})); diff != "" {
					t.Errorf("errors (-want +got):\n%s", diff)
				}
				if r.pool.Used() != 0 {
					t.Errorf("%d chunks in use", r.pool.Used())
				}
				r.check()
				// Remembered, then asked again.
				r.advance(0.5)
				r.say(remote, "third")
				if asked := len(r.host.TakeOpens()) > 0; asked == tt.remembered {
					t.Errorf("asked again: %v", asked)
				}
				if got := len(r.errors()) > 0; got != (tt.remembered && !tt.silent) {
					t.Errorf("told again: %v", got)
				}
				if !tt.remembered {
					return
				}
				r.advance(1)
				r.say(remote, "fourth")
				r.answer(r.oneOpen())
				r.check()
			})
		}
	}
}

// A long datagram is quoted as far as ICMP allows.
func TestRefusalQuotesLongDatagram(t *testing.T) {
	for _, tt := range []struct {
		remote packet.Addr
		want   int
	}{{remote4, 576 - 20 - 8 - 20 - 8}, {remote6, 1280 - 40 - 8 - 40 - 8}} {
		r := newRig(t)
		r.say(tt.remote, strings.Repeat("abcdefg", 9000))
		r.refuse(r.oneOpen(), syscall.EHOSTUNREACH, 0)
		if e := r.errors(); len(e) != 1 || e[0].qdata != strings.Repeat("abcdefg", 9000)[:tt.want] {
			t.Errorf("quoted %d bytes, want %d", len(e[0].qdata), tt.want)
		}
	}
}

func TestLifetime(t *testing.T) {
	tests := []struct {
		name    string
		in, out int // datagrams
		want    float64
	}{
		{"one way", 0, 5, 30},
		{"question and answer", 1, 1, 30},
		{"stream", 1, 2, 120},
		{"stream from the host", 2, 1, 120},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			s, token := r.connect(remote4) // the first one out
			for range tt.out - 1 {
				r.say(remote4, "x")
			}
			for range tt.in {
				s.Receive([]byte("y"), 0)
				r.Ready(token, flow.Readable)
			}
			r.advance(tt.want - 0.1)
			if r.Len() != 1 {
				t.Fatal("ended early")
			}
			// The wheel may fire an eighth late.
			r.advance(tt.want/8 + 0.2)
			if r.Len() != 0 || s.Closes != 1 || r.Stats.Expired != 1 {
				t.Errorf("did not end: stats %+v", r.Stats)
			}
			r.check()
		})
	}
}

func TestLifetimeConfigured(t *testing.T) {
	r := newRig(t)
	r.guest.UDPIdle, r.guest.UDPStream = 5, 9
	r.connect(remote4)
	for range 20 { // in use, it lives on
		r.advance(4)
		r.say(remote4, "x")
		r.Flush()
	}
	r.advance(6)
	if r.Len() != 0 {
		t.Error("an idle flow lives on")
	}
	s, token := r.connect(remote4)
	for range 20 {
		r.advance(4)
		s.Receive([]byte("y"), 0)
		s.Receive([]byte("y"), 0)
		r.Ready(token, flow.Readable)
	}
	r.advance(8)
	if r.Len() != 1 {
		t.Error("a stream ended early")
	}
	r.advance(3)
	if r.Len() != 0 {
		t.Error("a stream lives on")
	}
}

// With the table full, the flow that was not used for longest goes, and what it
// had collected is sent.
func TestEviction(t *testing.T) {
	r := newRig(t)
	for port := range uint16(rigOwn) {
		r.input(r.frame(remote4, 1+port, 2000, []byte("x")), 0)
		s := r.answer(r.oneOpen())
		s.Writes = nil
	}
	r.input(r.frame(remote4, 1, 2000, []byte("used")), 0)
	r.Flush()
	_, second := r.find(remote4, 2)
	var oldest = second.sock.FD
	r.input(r.frame(remote4, 2, 2000, []byte("collected")), 0)
	for port := uint16(3); port <= rigOwn; port++ {
		r.input(r.frame(remote4, port, 2000, []byte("used")), 0)
	}
	r.input(r.frame(remote4, 1, 2000, []byte("used")), 0)
	r.input(r.frame(remote4, 99, 2000, []byte("new")), 0)
	for _, s := range r.fds {
		if gone := s.Closes == 1; gone != (s.FD == oldest) {
			t.Errorf("descriptor %d gone: %v", s.FD, gone)
		}
		if s.FD == oldest {
			if diff := cmp.Diff([]string{"collected"}, sent(s)); diff != "" {
				t.Errorf("sent (-want +got):\n%s", diff)
			}
		}
	}
	if r.Stats.Evicted != 1 || r.Len() != rigOwn {
		t.Errorf("stats %+v", r.Stats)
	}
	r.check()
}

// Evict frees a descriptor: of the oldest flow that has one.
func TestEvict(t *testing.T) {
	r := newRig(t)
	if r.Evict() {
		t.Error("evicted from an empty table")
	}
	r.input(r.frame(remote4, 1, 2000, []byte("x")), 0)
	r.host.TakeOpens() // stays without an answer
	a, _ := r.connect(remote4)
	b, _ := r.connect(remote6)
	if !r.Evict() || a.Closes != 1 || b.Closes != 0 {
		t.Errorf("closed %d and %d", a.Closes, b.Closes)
	}
	if !r.Evict() || b.Closes != 1 || r.Evict() {
		t.Errorf("closed %d", b.Closes)
	}
	if r.Len() != 1 {
		t.Errorf("%d flows", r.Len())
	}
	r.check()
}

func TestClose(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	r.connect(remote4)
	r.say(remote6, "queued")
	r.Close()
	if r.Len() != 0 || r.host.OpenSockets() != 0 || r.pool.Used() != 0 || l.Closes != 1 {
		t.Errorf("%d flows, %d sockets, %d chunks", r.Len(), r.host.OpenSockets(), r.pool.Used())
	}
	for id := range uint32(timerBase + rigFlows) {
		if r.wheel.Pending(id) {
			t.Errorf("timer %d is set", id)
		}
	}
}

// TestRevoke: the flows to a peer end, and no other; what the guest sends then is
// asked for anew. Peers are where sockets are connected, not what the guest calls
// them.
func TestRevoke(t *testing.T) {
	for _, remote := range []packet.Addr{remote4, remote6} {
		r := newRig(t)
		r.say(remote, "x")
		s := r.host.Socket()
		peer := packet.Addr{15: 99}
		o := r.oneOpen()
		r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: peer})
		r.Revoke(remote, 2000)
		r.Revoke(peer, 2001)
		if s.Closes != 0 || r.Len() != 1 {
			t.Fatalf("closed %d times, by the name of another", s.Closes)
		}
		r.Revoke(peer, 2000)
		if s.Closes != 1 || r.Len() != 0 || len(r.errors()) != 0 || r.Stats.Revoked != 1 {
			t.Errorf("closed %d times, %d flows", s.Closes, r.Len())
		}
		r.check()
		r.say(remote, "y")
		r.refuse(r.oneOpen(), syscall.EACCES, ipc.OpenedProhibited)
		if len(r.errors()) != 1 {
			t.Error("the guest is not told")
		}
	}
}

// TestRevokeFlow: one flow of several to a peer ends, by its token.
func TestRevokeFlow(t *testing.T) {
	r := newRig(t)
	r.say(remote4, "x")
	o := r.oneOpen()
	s := r.answer(o)
	r.RevokeFlow(o.Token ^ 1<<32)
	r.RevokeFlow(o.Token + 1)
	if s.Closes != 0 || r.Len() != 1 {
		t.Fatal("another's end is taken for its own")
	}
	r.RevokeFlow(o.Token)
	if s.Closes != 1 || r.Len() != 0 || r.Stats.Revoked != 1 {
		t.Errorf("closed %d times, %d flows", s.Closes, r.Len())
	}
	r.check()
}

func TestWatchFails(t *testing.T) {
	r := newRig(t)
	r.say(remote4, "x")
	r.host.WatchErr = syscall.ENOSPC
	s := r.answer(r.oneOpen())
	if r.Len() != 0 || s.Closes != 1 {
		t.Errorf("%d flows, closed %d times", r.Len(), s.Closes)
	}
	r.check()
}

// Any order of events leaves lists, batches, queues and descriptors in order,
// and no data in the wrong flow.
func TestMachine(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		id := uint32(3)
		l := r.listen(ipc.Listener{ID: id, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
		var asked []ipc.Open
		looks := map[uint64]*flowtest.Socket{}
		port := func() uint16 { return uint16(rapid.IntRange(1, rigFlows+8).Draw(rt, "port")) }
		token := func() uint64 {
			if len(asked) == 0 {
				return 0
			}
			return rapid.SampledFrom(asked).Draw(rt, "request").Token
		}
		rt.Repeat(map[string]func(*rapid.T){
			"say": func(rt *rapid.T) {
				p := port()
				r.input(r.frame(remote4, p, 2000, []byte(fmt.Sprintf("%d", p))), 0)
			},
			"peer": func(rt *rapid.T) {
				from := packet.AddrFrom4([4]byte{192, 0, 2, byte(port())})
				l.Datagrams = append(l.Datagrams, flow.Datagram{Buf: []byte("in"), N: 2, From: from, FromPort: 9, To: our4})
				r.ListenerReady(l.Token, flow.Readable)
			},
			"answer a peer": func(rt *rapid.T) {
				from := packet.AddrFrom4([4]byte{192, 0, 2, byte(port())})
				r.input(r.frame(from, 53, 9, []byte("53")), 0)
			},
			"unlisten": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "unlisten") == 0 {
					r.RemoveListener(id)
					id++
					l = r.listen(ipc.Listener{ID: id, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
				}
			},
			"stray": func(rt *rapid.T) {
				tok := token()
				if s := r.fds[tok]; s != nil {
					from := packet.AddrFrom4([4]byte{192, 0, 2, byte(port())})
					s.Datagrams = append(s.Datagrams, flow.Datagram{Buf: []byte("st"), N: 2, From: from, FromPort: 9})
				}
				r.Ready(tok, flow.Readable)
			},
			"answer": func(rt *rapid.T) {
				for _, o := range r.host.TakeOpens() {
					asked = append(asked, o)
					switch rapid.IntRange(0, 4).Draw(rt, "answer") {
					case 4:
						s := r.host.Socket()
						r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: o.Dst, Flags: ipc.OpenedStaged})
						looks[o.Token], r.fds[o.Token] = s, s
					case 0:
						r.refuse(o, rapid.SampledFrom([]syscall.Errno{syscall.EMFILE, syscall.EACCES, syscall.EIO}).Draw(rt, "errno"), 0)
					case 1: // answered twice
						r.answer(o)
						s := r.host.Socket()
						r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token})
						if s.Closes != 1 {
							rt.Fatalf("second socket closed %d times", s.Closes)
						}
					default:
						r.answer(o)
					}
				}
			},
			"receive": func(rt *rapid.T) {
				tok := token()
				if s := r.fds[tok]; s != nil {
					s.Receive([]byte("hello"), 0)
				}
				r.host.LinkRoom = rapid.SampledFrom([]int{0, -1}).Draw(rt, "room")
				r.Ready(tok, flow.Readable)
			},
			"error": func(rt *rapid.T) {
				tok := token()
				if s := r.fds[tok]; s != nil {
					s.WriteErrs = append(s.WriteErrs, syscall.ECONNREFUSED, syscall.ECONNREFUSED)
					if rapid.Bool().Draw(rt, "broken") {
						s.Errors = make([]flow.SocketError, flow.MaxErrors+1)
						r.Ready(tok, flow.Failed|flow.Readable)
					}
				}
			},
			"switch": func(rt *rapid.T) {
				tok := token()
				look := looks[tok]
				if look == nil {
					return
				}
				delete(looks, tok)
				s := r.host.Socket()
				r.fds[tok] = s
				if old := r.Switch(s.FD, &ipc.Switch{Token: tok, Count: uint32(rapid.IntRange(0, len(look.Sent())).Draw(rt, "count"))}); old >= 0 {
					r.host.Close(old)
				}
			},
			"flush":  func(*rapid.T) { r.Flush() },
			"resume": func(*rapid.T) { r.host.LinkRoom = -1; r.Resume() },
			"evict":  func(*rapid.T) { r.Evict() },
			"time":   func(rt *rapid.T) { r.advance(float64(rapid.IntRange(0, 40).Draw(rt, "seconds"))) },
			"":       func(*rapid.T) { r.check() },
		})
		// Each datagram says which port it came from.
		for tok, s := range r.fds {
			for _, o := range asked {
				if o.Token == tok && o.Listener == 0 {
					for _, d := range sent(s) {
						if d != fmt.Sprint(o.SrcPort) {
							rt.Fatalf("%q left by the socket of port %d", d, o.SrcPort)
						}
					}
				}
			}
		}
		r.Close()
		if r.host.OpenSockets() != 0 || r.pool.Used() != 0 {
			rt.Fatalf("%d sockets, %d chunks left", r.host.OpenSockets(), r.pool.Used())
		}
	})
}

// TestGone: flows whose sockets have lost their address end, and no others; what the guest
// sends then is asked for anew.
func TestGone(t *testing.T) {
	r := newRig(t)
	r.say(remote4, "x")
	s := r.answer(r.oneOpen())
	r.say(remote6, "x")
	other := r.answer(r.oneOpen())
	r.Gone(func(fd int32) bool { return fd == s.FD })
	if s.Closes != 1 || other.Closes != 0 || r.Len() != 1 || len(r.errors()) != 0 || r.Stats.Revoked != 0 {
		t.Errorf("closed %d and %d times, %d flows", s.Closes, other.Closes, r.Len())
	}
	r.check()
	r.say(remote4, "y")
	r.oneOpen()
}
