// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/broker/inet"
	"aldente/broker/ports"
	"aldente/broker/tun"
	"aldente/ipc"
)

// loop is the agent's loop as part of this process, in a network namespace that the
// test is in too. There is no process to join anything, and no confinement.
type loop struct {
	*Client
	ended chan error
}

func newLoop(t *testing.T) *loop {
	t.Helper()
	nettest.Host(t)
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	l := &loop{&Client{channel: ours}, make(chan error, 1)}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		s := &server{channel: its, taps: make(map[string]tap), tun: -1}
		err := unix.Setns(ns, unix.CLONE_NEWNET)
		unix.Close(ns)
		if err == nil {
			err = s.serve()
		}
		for _, t := range s.taps {
			unix.Close(t.fd)
		}
		if s.scanner != nil {
			s.scanner.Close()
			s.scan.timer.Close()
		}
		unix.Close(its)
		l.ended <- err
	}()
	t.Cleanup(func() {
		_ = unix.Shutdown(ours, unix.SHUT_RDWR)
		if err := <-l.ended; err != nil && !errors.Is(err, ipc.ErrMalformed) {
			t.Error(err)
		}
		unix.Close(ours)
	})
	return l
}

// send sends one record.
func (l *loop) send(t *testing.T, rec []byte, fd int) {
	t.Helper()
	if err := ipc.Send(l.channel, rec, fd); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next record of the agent's.
func (l *loop) receive(t *testing.T) ([]byte, int) {
	t.Helper()
	b := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(l.channel, b, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], fd
}

// setup is Client.Setup, which asks about the process if the channel breaks.
func (l *loop) setup(t *testing.T, s Setup) (Tap, error) {
	t.Helper()
	if _, err := os.Stat(tunDevice); err != nil {
		t.Skipf("needs %s: %v", tunDevice, err)
	}
	tap, err := l.Setup(s)
	if err == nil {
		unix.Close(tap.FD)
	}
	return tap, err
}

// TestServeSetup: what a set-up asks for is there when it is answered, and what cannot
// be had is told.
func TestServeSetup(t *testing.T) {
	l := newLoop(t)
	mac := [6]byte{2, 0, 0, 0, 0, 9}
	tap, err := l.setup(t, Setup{Name: "eth9", MAC: mac, MTU: 1400, QueueLen: 77, Configure: true,
		V4: Family{Address: netip.MustParsePrefix("192.0.2.5/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
			Routes: [][]byte{linkRoute(netip.MustParseAddr("198.51.100.9")), defaultRoute(netip.MustParseAddr("203.0.113.1"))}},
		V6: Family{Addresses: [][]byte{addressBody(netip.MustParsePrefix("2001:db8::5/64"), unix.RT_SCOPE_UNIVERSE, 0)}, Gateway: netip.MustParseAddr("fe80::1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if tap.Name != "eth9" || tap.MAC != mac || tap.IfIndex == 0 || tap.Offload&tun.OffloadTCP != tun.OffloadTCP {
		t.Errorf("%+v", tap)
	}
	if len(tap.Warnings) != 1 || !strings.Contains(tap.Warnings[0], "cannot set route to default via 203.0.113.1: network is unreachable") {
		t.Errorf("warnings %q", tap.Warnings)
	}
	for line, want := range map[string][]string{
		"link show dev eth9":    {"mtu 1400", "qlen 77", "02:00:00:00:00:09", ",UP"},
		"-4 addr show dev eth9": {"192.0.2.5/24"},
		"-6 addr show dev eth9": {"2001:db8::5/64", "fe80::ff:fe00:9/64"},
		"-4 route":              {"default via 192.0.2.1 dev eth9", "198.51.100.9 dev eth9"},
		"-6 route":              {"default via fe80::1 dev eth9"},
		"addr show dev lo":      {"127.0.0.1/8"},
	} {
		out := nettest.Run(t, "ip", strings.Fields(line)...)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("ip %s: %q is missing in\n%s", line, w, out)
			}
		}
		if strings.Contains(out, "tentative") {
			t.Errorf("not usable yet: %s", out)
		}
	}
	again, err := l.setup(t, Setup{Name: "eth9"})
	if err != nil || again.IfIndex != tap.IfIndex {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	if _, err := l.setup(t, Setup{Name: "lo"}); err == nil || !strings.Contains(err.Error(), "another interface has that name") {
		t.Errorf("lo: %v", err)
	}
	for name, f := range map[string]Family{
		"short address": {Addresses: [][]byte{{2, 24}}},
		"short route":   {Routes: [][]byte{{2}}},
		"cut multipath": {Routes: [][]byte{append(make([]byte, 12), 12, 0, 9, 0, 99, 0, 0, 0, 0, 0, 0, 0)}},
		"odd route":     {Routes: [][]byte{make([]byte, 13)}},
	} {
		if _, err := l.setup(t, Setup{Name: "eth9", Configure: true, V4: f}); err == nil || !strings.Contains(err.Error(), "route") && !strings.Contains(err.Error(), "address") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestServeLoopback: without an interface, lo is all there is.
func TestServeLoopback(t *testing.T) {
	l := newLoop(t)
	nettest.IP(t, "link set lo down")
	if err := l.SetupLoopback(); err != nil {
		t.Fatal(err)
	}
	if out := nettest.Run(t, "ip", "-o", "link"); !strings.Contains(out, ",UP") || strings.Count(out, "\n") > 1 && strings.Contains(out, "tap") {
		t.Errorf("links: %s", out)
	}
}

// TestServeSockets: each request is answered in order, with a socket of the kind or
// the error.
func TestServeSockets(t *testing.T) {
	l := newLoop(t)
	const listen = ipc.AgentOpenBind | ipc.AgentOpenListen
	lo4 := [16]byte{10: 0xff, 0xff, 127, 0, 0, 1}
	requests := []struct {
		o     ipc.AgentOpen
		typ   int
		ss    string // of ss -Hltun, empty: nothing there
		errno unix.Errno
	}{
		{ipc.AgentOpen{Proto: ipc.ProtoTCP}, unix.SOCK_STREAM, "", 0},
		{ipc.AgentOpen{Proto: ipc.ProtoUDP, Flags: ipc.AgentOpenIPv4}, unix.SOCK_DGRAM, "", 0},
		{ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen | ipc.AgentOpenDevice | ipc.AgentOpenDual, LocalPort: 8001}, unix.SOCK_STREAM, "*%lo:8001", 0},
		{ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen, LocalPort: 8001}, 0, "", unix.EADDRINUSE},
		{ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen, LocalPort: 8002}, unix.SOCK_STREAM, "[::]:8002", 0},
		{ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen | ipc.AgentOpenIPv4, LocalPort: 80, Local: lo4}, unix.SOCK_STREAM, "127.0.0.1:80", 0},
		{ipc.AgentOpen{Proto: ipc.ProtoUDP, Flags: listen | ipc.AgentOpenDevice | ipc.AgentOpenDual, LocalPort: 8003}, unix.SOCK_DGRAM, "*%lo:8003", 0},
		{ipc.AgentOpen{Proto: ipc.ProtoUDP, Flags: ipc.AgentOpenBind | ipc.AgentOpenDevice | ipc.AgentOpenIPv4, LocalPort: 53, Local: lo4},
			unix.SOCK_DGRAM, "127.0.0.1%lo:53", 0},
		{ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: ipc.AgentOpenBind, LocalPort: 8004}, 0, "", unix.EINVAL},
	}
	// More than are held back, all at once.
	for range maxHeld / 4 {
		for i := range requests {
			o := requests[i].o
			if o.ID = uint32(i); o.Flags&ipc.AgentOpenBind == 0 {
				l.send(t, o.Encode(), -1)
			}
		}
	}
	for i := range requests {
		o := requests[i].o
		o.ID = uint32(i)
		l.send(t, o.Encode(), -1)
	}
	bare := 0
	for i := 0; i < len(requests); {
		b, fd := l.receive(t)
		var a ipc.AgentOpened
		if err := a.Decode(b); err != nil {
			t.Fatal(err)
		}
		r := &requests[a.ID]
		if unix.Errno(a.Errno) != r.errno || (fd >= 0) != (r.errno == 0) {
			t.Fatalf("request %d: %v, descriptor %d, want %v", a.ID, unix.Errno(a.Errno), fd, r.errno)
		}
		if fd >= 0 {
			defer unix.Close(fd)
			typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
			if flags, e := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || e != nil || typ != r.typ || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("request %d: type %d, flags %#x, %v, %v", a.ID, typ, flags, err, e)
			}
		}
		if bare++; bare > 2*(maxHeld/4) {
			if int(a.ID) != i {
				t.Fatalf("answer to %d, want %d", a.ID, i)
			}
			i++
		}
	}
	out := ss(t)
	for _, r := range requests {
		if !strings.Contains(out, r.ss) {
			t.Errorf("%q is missing in\n%s", r.ss, out)
		}
	}
}

// TestServeScan: ports that are bound, and those only, in records of a fixed size.
func TestServeScan(t *testing.T) {
	l := newLoop(t)
	l.Scans()
	if err := l.SetupLoopback(); err != nil {
		t.Skip(err)
	}
	any6 := netip.IPv6Unspecified()
	var want ports.Set
	for i := range 3 * ipc.MaxPortWords {
		port := uint16(1000 + 64*i) // each in a word of its own
		at := inet.Listener{At: netip.AddrPortFrom(any6, port)}
		fd, err := at.ListenUDP()
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		want.Add(port)
	}
	var got ports.Set
	l.send(t, (&ipc.AgentScan{ID: 5}).Encode(), -1)
	records := 0
	for last := false; !last; records++ {
		b, fd := l.receive(t)
		var p ipc.AgentPorts
		if err := p.Decode(b); err != nil || p.ID != 5 || p.Errno != 0 || fd >= 0 {
			t.Fatalf("%+v, %v", p, err)
		}
		for i, w := range p.Words[:p.N] {
			if int(w) < len(got) {
				t.Errorf("TCP ports %#x in word %d", p.Bits[i], w)
				continue
			}
			got[int(w)-len(got)] = p.Bits[i]
		}
		last = p.Last != 0
	}
	if got != want || records < 3 {
		t.Errorf("%d records: %v", records, slices.Collect(got.All()))
	}
}

// TestServeEnds: a broker that is not ours ends the loop, and so does one that is
// gone.
func TestServeEnds(t *testing.T) {
	setup := (&ipc.AgentSetup{ID: 3, Name: [16]byte{'t'}}).Encode()
	commit := func(id, n uint32) []byte { return (&ipc.AgentCommit{ID: id, Changes: n}).Encode() }
	change := (&ipc.AgentChange{ID: 4, Type: ipc.AgentAddress, Body: []byte{1}}).Encode()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		name string
		recs [][]byte
		fd   int
		want error
	}{
		{"gone", nil, -1, nil},
		{"short", [][]byte{{1}}, -1, ipc.ErrMalformed},
		{"of the agent's own", [][]byte{(&ipc.AgentDone{ID: 1}).Encode()}, -1, ipc.ErrMalformed},
		{"a descriptor", [][]byte{setup}, int(null.Fd()), ipc.ErrMalformed},
		{"commit of nothing", [][]byte{commit(0, 0)}, -1, ipc.ErrMalformed},
		{"commit of another", [][]byte{setup, commit(4, 0)}, -1, ipc.ErrMalformed},
		{"commit of more", [][]byte{setup, commit(3, 1)}, -1, ipc.ErrMalformed},
		{"change of nothing", [][]byte{change}, -1, ipc.ErrMalformed},
		{"change of another", [][]byte{setup, change}, -1, ipc.ErrMalformed},
		{"scan not announced", [][]byte{(&ipc.AgentScan{ID: 1}).Encode()}, -1, ipc.ErrMalformed},
		{"socket of no kind", [][]byte{(&ipc.AgentOpen{Proto: 132}).Encode()}, -1, ipc.ErrMalformed},
		{"padding", [][]byte{append(bytes.Clone(setup), 0)}, -1, ipc.ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLoop(t)
			for _, r := range tt.recs {
				l.send(t, r, tt.fd)
			}
			_ = unix.Shutdown(l.channel, unix.SHUT_WR)
			err := <-l.ended
			l.ended <- err // for the end of the test
			if !errors.Is(err, tt.want) {
				t.Errorf("ended with %v, want %v", err, tt.want)
			}
			if _, _, err := ipc.Receive(l.channel, make([]byte, ipc.MaxRecord), 0); err != io.EOF {
				t.Errorf("something was answered: %v", err)
			}
		})
	}
}
