// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/ports"
	"aldente/ipc"
)

// bound is what Sockets.Bound returns of a scan of now.
func (s *Sockets) bound(t *testing.T) (tcp, udp *ports.Set) {
	t.Helper()
	s.StartScan()
	return s.last(t)
}

// last is Sockets.Bound into new sets.
func (s *Sockets) last(t *testing.T) (tcp, udp *ports.Set) {
	t.Helper()
	tcp, udp = new(ports.Set), new(ports.Set)
	if err := s.Bound(tcp, udp); err != nil {
		t.Fatal(err)
	}
	return tcp, udp
}

// words is a record of one port, which is not the last of its scan.
func words(id uint32, word uint16) []byte {
	return (&ipc.AgentPorts{ID: id, N: 1, Words: [ipc.MaxPortWords]uint16{word}, Bits: [ipc.MaxPortWords]uint64{1}}).Encode()
}

func count(s *ports.Set) (n int) {
	for range s.All() {
		n++
	}
	return n
}

// TestScan has the agent list ports from one end to the other, while it opens
// sockets.
func TestScan(t *testing.T) {
	runtime.LockOSThread() // see TestOpenSockets
	defer runtime.UnlockOSThread()
	g := newGuest(t)
	g.Scans()
	s := g.sockets(t)
	if tcp, udp := s.bound(t); count(tcp) != 0 || count(udp) != 0 {
		t.Errorf("nothing is bound: %d of TCP, %d of UDP", count(tcp), count(udp))
	}
	var fds []int
	for _, p := range []uint16{1, 63, 64, 8191, 8192, 40000, 65535} {
		for proto, flags := range map[uint8]uint8{ipc.ProtoTCP: ipc.AgentOpenBind | ipc.AgentOpenListen, ipc.ProtoUDP: ipc.AgentOpenBind} {
			fd, err := s.open(ipc.AgentOpen{Proto: proto, Flags: flags | ipc.AgentOpenIPv4*(uint8(p)&1), LocalPort: p - uint16(proto&1)})
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, fd)
		}
	}
	for range 20 {
		opened := make(chan error, 1)
		s.Open(ipc.AgentOpen{Proto: ipc.ProtoTCP}, func(fd int, err error) {
			unix.Close(fd)
			opened <- err
		})
		tcp, udp := s.bound(t)
		if count(tcp) != 7 || count(udp) != 7 || !tcp.Has(65535) || !tcp.Has(8191) || !tcp.Has(8192) || !udp.Has(65534) || !udp.Has(0) && !udp.Has(62) {
			t.Fatalf("%d of TCP, %d of UDP", count(tcp), count(udp))
		}
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	if tcp, udp := s.bound(t); count(tcp) != 0 || count(udp) != 0 {
		t.Errorf("%d of TCP, %d of UDP are left", count(tcp), count(udp))
	}
}

// TestSlowScan has an agent that does not answer for a while: other requests go
// on, the answer is not lost, and none is asked for twice.
func TestSlowScan(t *testing.T) {
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t) // for a process; its channel is not used
	c := &Client{process: g.process, channel: ours}
	ended := make(chan error, 1)
	s := c.Sockets(func(err error) { ended <- err })
	s.patience = time.Millisecond
	var tcp, udp ports.Set
	for range 3 {
		if err := s.Bound(&tcp, &udp); !errors.Is(err, ErrSlow) {
			t.Fatalf("without an answer: %v", err)
		}
	}
	s.patience = scanTime
	answered := make(chan error, 1)
	s.Open(ipc.AgentOpen{Proto: ipc.ProtoTCP}, func(_ int, err error) { answered <- err })
	b := make([]byte, ipc.MaxRecord)
	receive := func() []byte {
		n, _, err := ipc.Receive(its, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n]
	}
	var scan ipc.AgentScan
	if err := scan.Decode(receive()); err != nil {
		t.Fatal(err)
	}
	var o ipc.AgentOpen
	if err := o.Decode(receive()); err != nil {
		t.Fatalf("asked for a second scan: %v", err)
	}
	send := func(rec []byte) {
		if err := ipc.Send(its, rec, -1); err != nil {
			t.Fatal(err)
		}
	}
	send((&ipc.AgentOpened{ID: o.ID, Errno: uint16(unix.EMFILE)}).Encode())
	if err := <-answered; !errors.Is(err, unix.EMFILE) {
		t.Errorf("a request beside a scan: %v", err)
	}
	send(words(scan.ID, 1))
	last := ipc.AgentPorts{ID: scan.ID, Last: 1, N: 1, Words: [ipc.MaxPortWords]uint16{ipc.PortWords - 1}, Bits: [ipc.MaxPortWords]uint64{1 << 63}}
	send(last.Encode())
	if err := s.Bound(&tcp, &udp); err != nil || count(&tcp) != 1 || !tcp.Has(64) || count(&udp) != 1 || !udp.Has(65535) {
		t.Errorf("%d of TCP, %d of UDP, %v", count(&tcp), count(&udp), err)
	}
	go func() {
		b := make([]byte, ipc.MaxRecord)
		for scan.ID, scan.Wait = 0, ipc.ScanChange; scan.Wait != ipc.ScanNow; { // one that waits may have been asked for before
			n, _, err := ipc.Receive(its, b, 0)
			if err != nil || scan.Decode(b[:n]) != nil {
				t.Errorf("asked for % x, %v", b[:max(n, 0)], err)
				return
			}
		}
		_ = ipc.Send(its, (&ipc.AgentPorts{ID: scan.ID, Last: 1, Errno: uint16(unix.ENOBUFS)}).Encode(), -1)
		_, _, _ = ipc.Receive(its, b, 0) // the next, and no answer
		_ = unix.Shutdown(its, unix.SHUT_RDWR)
	}()
	s.StartScan()
	if err := s.Bound(&tcp, &udp); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("a scan that failed: %v", err)
	}
	s.StartScan()
	for range 2 {
		if err := s.Bound(&tcp, &udp); !errors.Is(err, unix.EPIPE) {
			t.Errorf("after the agent's end: %v", err)
		}
	}
	<-ended
	unix.Close(ours)
	unix.Close(its)
}

// TestScanChanges: what is bound or closed after a scan is told of once, without being asked
// for again, and what stays is not told of.
func TestScanChanges(t *testing.T) {
	runtime.LockOSThread() // see TestOpenSockets
	defer runtime.UnlockOSThread()
	g := newGuest(t)
	g.Scans()
	s := g.sockets(t)
	news := make(chan struct{}, 100)
	s.Changed(func() { news <- struct{}{} })
	s.bound(t)
	told := func(what string) {
		t.Helper()
		select {
		case <-news:
		case <-time.After(20 * time.Second):
			t.Fatalf("nothing is told of %s", what)
		}
	}
	for range 2 {
		s.last(t) // has changes told
		fd, err := s.open(ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: ipc.AgentOpenBind | ipc.AgentOpenListen, LocalPort: 7000})
		if err != nil {
			t.Fatal(err)
		}
		told("a new listener")
		if tcp, udp := s.last(t); count(tcp) != 1 || !tcp.Has(7000) || count(udp) != 0 {
			t.Fatalf("%d of TCP, %d of UDP", count(tcp), count(udp))
		}
		time.Sleep(2500 * time.Millisecond) // two looks, that find what there was
		unix.Close(fd)
		told("one that is closed")
		if tcp, udp := s.last(t); count(tcp) != 0 || count(udp) != 0 {
			t.Fatalf("%d of TCP, %d of UDP", count(tcp), count(udp))
		}
	}
	if len(news) != 0 {
		t.Errorf("%d times told of nothing", len(news))
	}
}

// TestScanInPlace: a scan of now takes the place of one that waits for a change, whose answer
// may be on its way all the same; after that, nothing is told of changes until Bound asks.
func TestScanInPlace(t *testing.T) {
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(its)
	g := newGuest(t) // for a process; its channel is not used
	c := &Client{process: g.process, channel: ours}
	ended := make(chan error, 1)
	s := c.Sockets(func(err error) { ended <- err })
	patience := unix.NsecToTimeval(20e9)
	if err := unix.SetsockoptTimeval(its, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, ipc.MaxRecord)
	asked := func(waits uint32) (id uint32) {
		t.Helper()
		n, _, err := ipc.Receive(its, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		var scan ipc.AgentScan
		if err := scan.Decode(b[:n]); err != nil || scan.Wait != waits {
			t.Fatalf("%+v, %v", scan, err)
		}
		return scan.ID
	}
	answer := func(id uint32, word uint16) {
		r := ipc.AgentPorts{ID: id, Last: 1, N: 1, Words: [ipc.MaxPortWords]uint16{word}, Bits: [ipc.MaxPortWords]uint64{1}}
		if err := ipc.Send(its, r.Encode(), -1); err != nil {
			t.Fatal(err)
		}
	}
	s.StartScan()
	answer(asked(ipc.ScanNow), 1)
	if tcp, _ := s.last(t); !tcp.Has(64) {
		t.Error("the first answer is not there")
	}
	s.last(t)
	waits := asked(ipc.ScanChange)
	for range 3 { // nothing is asked for again
		s.last(t)
	}
	s.StartScan()
	now := asked(ipc.ScanNow)
	answer(waits, 2)
	answer(now, 3)
	if tcp, _ := s.last(t); count(tcp) != 1 || !tcp.Has(192) {
		t.Error("the answer is another's")
	}
	s.last(t) // the call before has asked if the answer was there already
	answer(asked(ipc.ScanChange), 4)
	if !eventually(func() bool { tcp, _ := s.last(t); return tcp.Has(256) }) {
		t.Error("a change is not there")
	}
	_ = unix.Shutdown(its, unix.SHUT_RDWR)
	<-ended
	unix.Close(ours)
}

// eventually is whether f holds within some seconds.
func eventually(f func() bool) bool {
	for range 2000 {
		if f() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

// TestHostileScan answers a scan as no agent of ours does: that ends it.
func TestHostileScan(t *testing.T) {
	end := func(id uint32) []byte { return (&ipc.AgentPorts{ID: id, Last: 1}).Encode() }
	for name, answer := range map[string]func(id uint32) [][]byte{
		"a word twice":            func(id uint32) [][]byte { return [][]byte{words(id, 2), words(id, 2)} },
		"words out of order":      func(id uint32) [][]byte { return [][]byte{words(id, 2), words(id, 1)} },
		"ports of another scan":   func(id uint32) [][]byte { return [][]byte{words(id+1, 2)} },
		"another's answer within": func(id uint32) [][]byte { return [][]byte{words(id, 2), words(id-1, 3)} },
		"end of another scan":     func(id uint32) [][]byte { return [][]byte{end(id - 1)} },
		"two ends":                func(id uint32) [][]byte { return [][]byte{end(id), end(id)} },
		"ports after the end":     func(id uint32) [][]byte { return [][]byte{end(id), words(id, 2)} },
		"no ports and no end":     func(id uint32) [][]byte { return [][]byte{(&ipc.AgentPorts{ID: id}).Encode()} },
		"a socket for a scan":     func(id uint32) [][]byte { return [][]byte{(&ipc.AgentOpened{ID: id, Errno: 1}).Encode()} },
		"ports cut short":         func(id uint32) [][]byte { return [][]byte{words(id, 2)[:100]} },
		"ports with a socket":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			ours, its, err := ipc.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(its)
			g := newGuest(t)
			c := &Client{process: g.process, channel: ours}
			ended := make(chan error, 1)
			s := c.Sockets(func(err error) { ended <- err })
			go func() {
				var scan ipc.AgentScan
				b := make([]byte, ipc.MaxRecord)
				n, _, _ := ipc.Receive(its, b, 0)
				_ = scan.Decode(b[:n])
				if answer == nil {
					_ = ipc.Send(its, words(scan.ID, 2), its)
					return
				}
				for _, rec := range answer(scan.ID) {
					_ = ipc.Send(its, rec, -1)
				}
			}()
			var tcp, udp ports.Set
			_ = s.Bound(&tcp, &udp)
			select {
			case err := <-ended:
				if !errors.Is(err, ipc.ErrMalformed) {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("accepted")
			}
			if ws, err := g.process.Reap(); err != nil || ws.Signal() != unix.SIGKILL {
				t.Errorf("its process ended with %#x, %v", ws, err)
			}
			unix.Close(ours)
		})
	}
}

// TestForgedConfiguration has root of the namespace answer in the kernel's place
// while the agent configures it: no request fails for that, none is left out.
func TestForgedConfiguration(t *testing.T) {
	g := newGuest(t)
	stop, done := make(chan struct{}), make(chan struct{})
	var taken atomic.Int64
	running := make(chan struct{})
	go func() {
		defer close(done)
		g.do(t, func() {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
			close(running)
			if err != nil {
				return
			}
			defer unix.Close(fd)
			// A socket that has no address takes its process's number.
			to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: uint32(g.PID())}
			for seq := uint32(0); ; seq = (seq + 1) % 16 {
				select {
				case <-stop:
					return
				default:
				}
				if unix.Sendto(fd, refusal(seq), 0, to) == nil {
					taken.Add(1)
				}
			}
		})
	}()
	<-running
	for range 5 {
		s := Setup{Name: "eth0", MTU: 1500, Configure: true}
		s.V4.Address, s.V6.Address = netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")
		tap, err := g.Setup(s)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(tap.FD)
		if len(tap.Warnings) > 0 {
			t.Errorf("warnings: %q", tap.Warnings)
		}
	}
	close(stop)
	<-done
	t.Logf("%d forged answers reached a socket before it was connected", taken.Load())
}

// refusal is an answer of the kernel's to a request with the number: EPERM.
func refusal(seq uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 36)
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
	b = append(b, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(unix.EPERM)+1)
	return append(b, make([]byte, 16)...)
}
