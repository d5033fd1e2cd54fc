// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// fd reads and writes a blocking socket.
type fd int

func (f fd) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), b)
		switch {
		case err == unix.EINTR: // a socket with a timeout is not restarted, signal(7)
		case n == 0 && err == nil:
			return 0, io.EOF
		default:
			return max(n, 0), err
		}
	}
}

func (f fd) Write(b []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(int(f), b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if done += n; done == len(b) {
			return done, nil
		}
	}
}

// result is what became of one direction.
type result struct {
	sum [32]byte
	n   int64
	err error
}

// send writes random pieces and closes its direction.
func send(f int, size int64, piece int, seed byte) <-chan result {
	c := make(chan result, 1)
	go func() {
		r := rand.NewChaCha8([32]byte{seed})
		sizes := rand.New(rand.NewPCG(uint64(seed), 1))
		h := sha256.New()
		b := make([]byte, piece)
		var done int64
		for done < size {
			n := int(min(int64(1+sizes.IntN(piece)), size-done))
			_, _ = r.Read(b[:n])
			h.Write(b[:n])
			if _, err := fd(f).Write(b[:n]); err != nil {
				c <- result{err: err}
				return
			}
			done += int64(n)
		}
		err := unix.Shutdown(f, unix.SHUT_WR)
		c <- result{[32]byte(h.Sum(nil)), done, err}
	}()
	return c
}

// receive reads up to the end.
func receive(f int) <-chan result {
	c := make(chan result, 1)
	go func() {
		h := sha256.New()
		n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{fd(f)}, make([]byte, 100_000))
		c <- result{[32]byte(h.Sum(nil)), n, err}
	}()
	return c
}

// TestTransfer moves data both ways at once, in pieces of all sizes, and ends
// each direction by itself.
func TestTransfer(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 32 << 20
	}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, piece := range []int{100, 16 << 10, 1 << 20} {
			for _, pipes := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/pipes=%v", addr, piece, pipes), func(t *testing.T) {
					l := newLane(t)
					l.noPipe = !pipes
					c := l.connect(addr)
					defer c.close()
					total := min(size, int64(piece)*10_000)
					results := []<-chan result{
						send(c.client, total, piece, 1), receive(c.server),
						send(c.server, total/2, piece, 2), receive(c.client),
					}
					got := make([]result, len(results))
					for i, ch := range results {
						l.until("end of a direction", func() bool {
							select {
							case got[i] = <-ch:
								return true
							default:
								return false
							}
						})
					}
					for i := 0; i < len(got); i += 2 {
						if got[i].err != nil || got[i+1].err != nil || got[i].sum != got[i+1].sum || got[i].n != got[i+1].n {
							t.Errorf("sent %d bytes, %v; received %d, %v", got[i].n, got[i].err, got[i+1].n, got[i+1].err)
						}
					}
					l.until("closed", func() bool { return l.t.Stats.Closed == 1 })
					if l.t.Len() != 0 || l.t.Stats.Reset != 0 {
						t.Errorf("%d flows left, %+v", l.t.Len(), l.t.Stats)
					}
					if pipes && piece == 1<<20 && l.t.Stats.Spliced < l.t.Stats.Copied {
						t.Errorf("bulk was copied: %+v", l.t.Stats)
					}
					if piece == 100 && l.t.Stats.Copied == 0 {
						t.Errorf("small pieces were spliced: %+v", l.t.Stats)
					}
				})
			}
		}
	}
}

// TestHalfClose answers after the client's end.
func TestHalfClose(t *testing.T) {
	l := newLane(t)
	c := l.connect("127.0.0.1")
	defer c.close()
	must(t, unix.Shutdown(c.client, unix.SHUT_WR))
	r := receive(c.server)
	var got result
	l.until("end", func() bool { return poll(r, &got) })
	if got.err != nil || got.n != 0 {
		t.Fatalf("%+v", got)
	}
	if _, err := fd(c.server).Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	must(t, unix.Shutdown(c.server, unix.SHUT_WR))
	r = receive(c.client)
	l.until("answer", func() bool { return poll(r, &got) })
	if got.err != nil || got.n != 4 {
		t.Fatalf("%+v", got)
	}
	l.until("closed", func() bool { return l.t.Len() == 0 })
}

func poll(c <-chan result, r *result) bool {
	select {
	case *r = <-c:
		return true
	default:
		return false
	}
}

// TestReset carries a reset over, whoever sends it, also while data are stuck.
func TestReset(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		for _, by := range []string{"client", "server"} {
			t.Run(fmt.Sprintf("%s/stuck=%v", by, stuck), func(t *testing.T) {
				l := newLane(t)
				c := l.connect("127.0.0.1")
				breaks, sees := c.client, c.server
				if by == "server" {
					breaks, sees = sees, breaks
				}
				if stuck {
					r := l.stall(breaks, 1<<40)
					defer func() { <-r }()
				}
				disconnect(t, breaks)
				l.until("reset", func() bool { return l.t.Stats.Reset == 1 })
				if l.t.Len() != 0 {
					t.Errorf("%d flows left", l.t.Len())
				}
				got := <-receive(sees)
				if !errors.Is(got.err, unix.ECONNRESET) {
					t.Errorf("read %d bytes, %v", got.n, got.err)
				}
				c.close()
			})
		}
	}
}

// disconnect resets a connection, also while another thread writes to it.
func disconnect(t *testing.T, fd int) {
	t.Helper()
	var unspec [16]byte // AF_UNSPEC, connect(2)
	if _, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec)); e != 0 {
		t.Fatal(e)
	}
}

// TestRefused resets the client if there is nobody at the far end, and whenever
// the broker says no.
func TestRefused(t *testing.T) {
	dead, deadAt := listenTCP(t, "127.0.0.1")
	unix.Close(dead)
	l := newLane(t)
	for name, open := range map[string]func(*ipc.Open) (int, syscall.Errno){
		"nobody listens":  func(*ipc.Open) (int, syscall.Errno) { return l.dial("127.0.0.1", deadAt) },
		"the broker's no": func(*ipc.Open) (int, syscall.Errno) { return -1, syscall.EACCES },
		"no descriptor":   func(*ipc.Open) (int, syscall.Errno) { return -1, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			l.open = open
			front, at := listenTCP(t, "127.0.0.1")
			defer unix.Close(front)
			c := newSocket(t, "127.0.0.1", unix.SOCK_STREAM)
			defer unix.Close(c)
			timeouts(c)
			must(t, unix.Connect(c, at))
			before := l.t.Stats.Refused
			l.accept(front, ipc.ListenerMayBypass)
			l.until("refused", func() bool { return l.t.Stats.Refused == before+1 })
			if _, err := fd(c).Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			if l.t.Len() != 0 {
				t.Errorf("%d flows left", l.t.Len())
			}
		})
	}
}

// TestFarAddress decides where flows lead.
func TestFarAddress(t *testing.T) {
	lo4, lo5 := packet.AddrFrom4([4]byte{127, 0, 0, 1}), packet.AddrFrom4([4]byte{127, 0, 0, 5})
	lo6 := packet.Addr{15: 1}
	guest4, guest6 := packet.AddrFrom4([4]byte{192, 0, 2, 5}), packet.Addr{0x20, 1, 15: 5}
	guestLL := packet.Addr{0xfe, 0x80, 15: 5}
	host := packet.AddrFrom4([4]byte{192, 0, 2, 2})
	var none packet.Addr
	for _, tt := range []struct {
		name        string
		config      uint64
		listener    uint8
		peer, local packet.Addr
		want        packet.Addr
	}{
		{"public address", 0, ipc.ListenerMayBypass, lo4, lo4, guest4},
		{"public address, IPv6", 0, ipc.ListenerMayBypass, lo6, lo6, guest6},
		{"loopback asked for", ipc.FlagLoToLo, ipc.ListenerMayBypass, lo4, lo5, lo5},
		{"loopback asked for, IPv6", ipc.FlagLoToLo, ipc.ListenerMayBypass, lo6, lo6, lo6},
		{"loopback asked for, the host's address spoken to", ipc.FlagLoToLo, ipc.ListenerMayBypass, lo4, host, guest4},
		{"no link", ipc.FlagSpliceOnly, ipc.ListenerMayBypass, lo4, lo5, lo5},
		{"no link, the host's address spoken to", ipc.FlagSpliceOnly, ipc.ListenerMayBypass, lo4, host, lo4},
		{"namespace", 0, ipc.ListenerNamespace, lo4, lo5, lo5},
		{"namespace, IPv6", 0, ipc.ListenerNamespace, lo6, lo6, lo6},
		{"namespace, from its public address", 0, ipc.ListenerNamespace, guest4, lo4, none},
		{"namespace, to its public address", 0, ipc.ListenerNamespace, lo4, guest4, none},
	} {
		l := newLane(t)
		l.guest.Flags = tt.config
		l.guest.Seen4, l.guest.Seen6, l.guest.SeenLL6 = guest4, guest6, guestLL
		if got := l.t.farAddress(tt.listener, &tt.peer, &tt.local); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	l := newLane(t)
	l.guest.Seen6, l.guest.SeenLL6 = none, guestLL
	if got := l.t.farAddress(ipc.ListenerMayBypass, &lo6, &lo6); got != guestLL {
		t.Errorf("no other address than link-local: %v, want %v", got, guestLL)
	}
}

// TestPipesBounded stalls more flows than there are pipes, and gets every byte
// through in the end.
func TestPipesBounded(t *testing.T) {
	const flows = maxPipes + 80
	l := newLane(t)
	conns := make([]connection, flows)
	b := make([]byte, 256<<10)
	total := make([]int, flows)
	for i := range conns {
		conns[i] = l.connect("127.0.0.1")
		defer conns[i].close()
		must(t, unix.SetNonblock(conns[i].client, true))
		// Small buffers: a few hundred kilobytes stall the flow, and all flows
		// together stay far below what the kernel lets TCP have (tcp_mem).
		must(t, unix.SetsockoptInt(conns[i].client, unix.SOL_SOCKET, unix.SO_SNDBUF, 128<<10))
		must(t, unix.SetsockoptInt(conns[i].server, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10))
		must(t, unix.SetsockoptInt(int(l.t.streams.all[i].sides[far].fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 32<<10))
	}
	for range 10 {
		for i := range conns {
			if n, err := unix.Write(conns[i].client, b); err == nil {
				total[i] += n
			}
		}
		l.step()
	}
	stalled := 0
	for i := range conns {
		if l.t.streams.all[i].sides[near].held > 0 {
			stalled++
		}
	}
	if stalled != maxPipes {
		t.Errorf("%d flows hold data in pipes, of %d", stalled, maxPipes)
	}
	for i := range conns {
		must(t, unix.Shutdown(conns[i].client, unix.SHUT_WR))
		r := receive(conns[i].server)
		var got result
		l.until("all read", func() bool { return poll(r, &got) })
		if got.err != nil || got.n != int64(total[i]) {
			t.Fatalf("flow %d: sent %d, got %d, %v", i, total[i], got.n, got.err)
		}
	}
	l.step()
	if open := len(l.t.pipes.free); open > keepPipes {
		t.Errorf("%d unused pipes kept", open)
	}
}

// TestDescriptors makes flows one after the other and finds as many descriptors
// as before.
func TestDescriptors(t *testing.T) {
	l := newLane(t)
	l.connect("127.0.0.1").close()
	l.until("closed", func() bool { return l.t.Len() == 0 })
	before := descriptors(t)
	for range 200 {
		c := l.connect("127.0.0.1")
		if _, err := fd(c.client).Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		l.step()
		c.close()
		l.until("closed", func() bool { return l.t.Len() == 0 })
	}
	if after := descriptors(t); after > before+2*keepPipes {
		t.Errorf("%d descriptors, then %d", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(d)
}

// TestNoAllocations asks and answers, in small and in large pieces.
func TestNoAllocations(t *testing.T) {
	for _, size := range []int{1, 4096, 200_000} {
		l := newLane(t)
		c := l.connect("127.0.0.1")
		b := make([]byte, size)
		there := func(from, to int) {
			sent, got := 0, 0
			for got < size {
				if sent < size {
					n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(from), uintptr(unsafe.Pointer(&b[sent])), uintptr(size-sent), unix.MSG_DONTWAIT, 0, 0)
					if e == 0 {
						sent += int(n)
					}
				}
				l.step()
				if n, e := l.Recv(int32(to), b, flow.MsgDontWait); e == 0 {
					got += n
				}
			}
		}
		allocs := testing.AllocsPerRun(100, func() {
			there(c.client, c.server)
			there(c.server, c.client)
		})
		if allocs != 0 {
			t.Errorf("%d bytes: %v allocations", size, allocs)
		}
		c.close()
	}
}

// BenchmarkRequest is one small message and its answer.
func BenchmarkRequest(b *testing.B) {
	l := newLane(b)
	c := l.connect("127.0.0.1")
	defer c.close()
	m := make([]byte, 1)
	for b.Loop() {
		for _, way := range [2][2]int{{c.client, c.server}, {c.server, c.client}} {
			_, _ = unix.Write(way[0], m)
			l.step()
			_, _ = unix.Read(way[1], m)
		}
	}
}
