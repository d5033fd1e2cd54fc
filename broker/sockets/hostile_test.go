// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/flowlog"
	"aldente/ipc"
)

// served is a factory at work, and the worker's end of its channel.
type atWork struct {
	*Factory
	worker int
	done   chan error
}

// work starts a factory whose guest may reach 127.0.0.1 as 192.0.2.77, and
// nothing that rules deny.
func work(t testing.TB, rules ...egress.Rule) *atWork {
	t.Helper()
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	set, err := egress.New(rules, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	f := New(Config{
		Logger: log, Egress: set, Flows: flowlog.New(flowlog.Options{Logger: log, Max: 100}),
		V4: Family{Enabled: true, MapHostLoopback: netip.MustParseAddr("192.0.2.77")},
		V6: Family{Enabled: true, Scope: 1},
	})
	f.OnFigures = func(ipc.Kind, []byte) error { return nil }
	f.OnInflight = func(*ipc.Inflight) {}
	_ = unix.SetsockoptTimeval(ours, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 100_000})
	_ = unix.SetsockoptTimeval(theirs, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	w, gone := &atWork{f, theirs, make(chan error, 1)}, make(chan struct{})
	go func() {
		defer close(gone)
		err := f.Serve(ours)
		f.Close()
		unix.Close(ours) // as package supervise does
		w.done <- err
	}()
	t.Cleanup(func() { // and waits: the next test may count descriptors
		unix.Close(theirs)
		select {
		case <-gone:
		case <-time.After(5 * time.Second):
			t.Error("the worker is served though it has gone")
		}
	})
	return w
}

func (w *atWork) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-w.done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("still served")
		return nil
	}
}

func encode(o ipc.Open) []byte {
	b := make([]byte, ipc.OpenSize)
	o.Encode(b)
	return b
}

// goodOpen is what an honest worker asks for.
var goodOpen = ipc.Open{Token: 7, Proto: ipc.ProtoUDP, Src: netip.MustParseAddr("10.0.0.1").As16(), SrcPort: 0,
	Dst: netip.MustParseAddr("192.0.2.77").As16(), DstPort: 9}

// changed returns a good request with one byte set.
func changed(at int, to byte) []byte {
	b := encode(goodOpen)
	b[at] = to
	return b
}

// TestMalformedIsTheEnd: the first record that no worker of ours sends is the
// last, and what preceded it in the same message leaves no descriptor behind.
func TestMalformedIsTheEnd(t *testing.T) {
	with := func(change func(*ipc.Open)) []byte {
		o := goodOpen
		change(&o)
		return encode(o)
	}
	header := func(kind ipc.Kind, size int) []byte {
		b := make([]byte, max(size, ipc.HeaderSize))
		binary.LittleEndian.PutUint16(b, uint16(kind))
		binary.LittleEndian.PutUint16(b[2:], uint16(size))
		return b
	}
	event, ended, accepted := make([]byte, ipc.EventSize), make([]byte, ipc.EndedSize), make([]byte, ipc.AcceptedSize)
	(&ipc.Event{Code: 99}).Encode(event)
	(&ipc.Ended{How: ipc.EndUnused + 1}).Encode(ended)
	(&ipc.Accepted{}).Encode(accepted)
	good := encode(goodOpen)
	const body = ipc.HeaderSize
	records := map[string][]byte{
		"one byte":                         {1},
		"seven bytes":                      good[:7],
		"header only":                      good[:ipc.HeaderSize],
		"one byte short":                   good[:len(good)-1],
		"one byte long":                    append(bytes.Clone(good), 0),
		"kind zero":                        header(0, ipc.HeaderSize),
		"kind unknown":                     header(200, ipc.HeaderSize),
		"agent's kind":                     header(0x100, ipc.HeaderSize),
		"broker's own kind":                header(ipc.KindOpened, ipc.OpenedSize),
		"configuration":                    header(ipc.KindConfig, 100),
		"listener":                         header(ipc.KindListener, 100),
		"ready again":                      ipc.Empty(ipc.KindReady),
		"start":                            ipc.Empty(ipc.KindStart),
		"size smaller than a header":       changed(2, 1),
		"size larger than the message":     changed(3, 0xff),
		"size of another record":           changed(2, ipc.EventSize),
		"reserved byte of the header":      changed(4, 1),
		"last reserved byte":               changed(7, 0x80),
		"reserved byte of the request":     changed(body+10, 1),
		"other reserved byte":              changed(body+11, 1),
		"unknown flag":                     changed(body+9, 0x80),
		"protocol 0":                       changed(body+8, 0),
		"SCTP":                             changed(body+8, 132),
		"raw IP":                           changed(body+8, 255),
		"echo with a port":                 with(func(o *ipc.Open) { o.Proto = ipc.ProtoICMP }),
		"reply by TCP":                     with(func(o *ipc.Open) { o.Proto, o.Listener = ipc.ProtoTCP, 1 }),
		"reply by echo":                    with(func(o *ipc.Open) { o.Proto, o.DstPort, o.Listener = ipc.ProtoICMP, 0, 1 }),
		"bypass without a listener":        with(func(o *ipc.Open) { o.Flags = ipc.OpenBypass }),
		"bypass of echo":                   with(func(o *ipc.Open) { o.Proto, o.DstPort, o.Listener, o.Flags = ipc.ProtoICMP, 0, 1, ipc.OpenBypass }),
		"event unknown":                    event,
		"end of a flow unknown":            ended,
		"accepted by no listener":          accepted,
		"event too long":                   append(event, 0),
		"33 requests":                      bytes.Repeat(good, ipc.MaxBatch+1),
		"longer than any message":          bytes.Repeat(good, 200),
		"good ones, then a bad one":        append(bytes.Repeat(good, 5), changed(body+9, 0x80)...),
		"good one, then an event":          append(bytes.Clone(good), event...),
		"good ones, then half of one":      append(bytes.Repeat(good, 2), good[:30]...),
		"zeros":                            make([]byte, ipc.OpenSize),
		"ones":                             bytes.Repeat([]byte{0xff}, ipc.OpenSize),
		"the broker's answer, sent back":   func() []byte { b := make([]byte, ipc.OpenedSize); (&ipc.Opened{}).Encode(b); return b }(),
		"a good request inside of another": append(changed(2, 2*ipc.OpenSize), good...),
	}
	for name, rec := range records {
		t.Run(name, func(t *testing.T) {
			before := descriptorCount(t)
			w := work(t)
			if _, err := unix.Write(w.worker, rec); err != nil {
				t.Fatal(err)
			}
			if err := w.end(t); !errors.Is(err, ipc.ErrMalformed) {
				t.Errorf("%v", err)
			}
			unix.Close(w.worker)
			w.worker = -1
			if n := descriptorCount(t); n > before {
				t.Errorf("%d descriptors left", n-before)
			}
		})
	}
	for _, n := range []int{1, 2, 3} {
		w := work(t)
		if err := unix.Sendmsg(w.worker, encode(goodOpen), unix.UnixRights([]int{0, 1, 2}[:n]...), nil, 0); err != nil {
			t.Fatal(err)
		}
		if err := w.end(t); !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%d descriptors with a record: %v", n, err)
		}
	}
}

func descriptorCount(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// udpListener gives the factory a bound UDP socket.
func (w *atWork) udpListener(t testing.TB, addr string) Listener {
	t.Helper()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	port := u.LocalAddr().(*net.UDPAddr).Port
	l := Listener{Proto: ipc.ProtoUDP, Port: uint16(port), GuestPort: uint16(port), FD: -1}
	if addr != "0.0.0.0" {
		l.Addr = netip.MustParseAddr(addr)
	}
	return w.Adopt(l)
}

// TestCapturedWorkerAsks tries every way of asking for a socket to where the
// egress rules do not let the guest.
func TestCapturedWorkerAsks(t *testing.T) {
	w := work(t, egress.Rule{Allow: true, Dest: "127.0.0.2"}, egress.Rule{Dest: "host"}, egress.Rule{Dest: "203.0.113.0/24"})
	any, lo := w.udpListener(t, "0.0.0.0"), w.udpListener(t, "127.0.0.2")
	tcp := w.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 1, GuestPort: 1, FD: -1})
	ns := w.Adopt(Listener{Proto: ipc.ProtoUDP, Port: 5353, GuestPort: 53, Namespace: true, FD: -1})
	addr := func(s string) [16]byte { return netip.MustParseAddr(s).As16() }
	const none = -1 // the rules, not an error, have to say no
	for _, tt := range []struct {
		name string
		open ipc.Open
		want int
	}{
		{"denied network", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("203.0.113.1"), DstPort: 80}, none},
		{"denied network, mapped", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("::ffff:203.0.113.1"), DstPort: 80}, none},
		{"denied network by UDP", ipc.Open{Proto: ipc.ProtoUDP, Dst: addr("203.0.113.1"), DstPort: 80}, none},
		{"denied network by echo", ipc.Open{Proto: ipc.ProtoICMP, Dst: addr("203.0.113.1")}, none},
		{"denied network by the other echo", ipc.Open{Proto: ipc.ProtoICMPv6, Dst: addr("203.0.113.1")}, none},
		{"denied network behind NAT64", ipc.Open{Proto: ipc.ProtoTCP, Src: addr("::1"), Dst: addr("64:ff9b::203.0.113.1"), DstPort: 80}, none},
		{"mapped loopback", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("192.0.2.77"), DstPort: 80}, none},
		{"loopback itself", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("127.0.0.1"), DstPort: 80}, int(unix.EACCES)},
		{"loopback, mapped", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("::ffff:127.0.0.1"), DstPort: 80}, int(unix.EACCES)},
		{"allowed loopback itself", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("127.0.0.2"), DstPort: 80}, int(unix.EACCES)},
		{"loopback of IPv6", ipc.Open{Proto: ipc.ProtoUDP, Src: addr("::2"), Dst: addr("::1"), DstPort: 80}, int(unix.EACCES)},
		{"loopback by echo", ipc.Open{Proto: ipc.ProtoICMP, Dst: addr("127.0.0.1")}, int(unix.EACCES)},
		{"unspecified", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("0.0.0.0"), DstPort: 80}, int(unix.EACCES)},
		{"unspecified of IPv6", ipc.Open{Proto: ipc.ProtoTCP, Src: addr("::2"), Dst: addr("::"), DstPort: 80}, int(unix.EACCES)},
		{"zero network", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("0.0.0.1"), DstPort: 80}, none},
		{"multicast", ipc.Open{Proto: ipc.ProtoUDP, Dst: addr("224.0.0.251"), DstPort: 5353}, int(unix.EACCES)},
		{"multicast of IPv6", ipc.Open{Proto: ipc.ProtoUDP, Src: addr("::2"), Dst: addr("ff02::fb"), DstPort: 5353}, int(unix.EACCES)},
		{"broadcast", ipc.Open{Proto: ipc.ProtoUDP, Dst: addr("255.255.255.255"), DstPort: 67}, int(unix.EACCES)},
		{"port 0", ipc.Open{Proto: ipc.ProtoTCP, Dst: addr("198.51.100.1")}, int(unix.EACCES)},
		{"port 0 by UDP", ipc.Open{Proto: ipc.ProtoUDP, Dst: addr("198.51.100.1")}, int(unix.EACCES)},
		{"families mixed", ipc.Open{Proto: ipc.ProtoTCP, Src: addr("2001:db8::1"), Dst: addr("198.51.100.1"), DstPort: 80}, int(unix.EAFNOSUPPORT)},

		{"reply to loopback", ipc.Open{Proto: ipc.ProtoUDP, Listener: any.ID, SrcPort: any.Port, Dst: addr("127.0.0.1"), DstPort: 53}, none},
		{"reply to a denied network", ipc.Open{Proto: ipc.ProtoUDP, Listener: any.ID, SrcPort: any.Port, Dst: addr("203.0.113.1"), DstPort: 53}, none},
		{"reply to a denied network, mapped", ipc.Open{Proto: ipc.ProtoUDP, Listener: any.ID, SrcPort: any.Port, Dst: addr("::ffff:203.0.113.1"), DstPort: 53}, none},
		{"reply to port 0", ipc.Open{Proto: ipc.ProtoUDP, Listener: any.ID, SrcPort: any.Port, Dst: addr("198.51.100.1")}, int(unix.EINVAL)},
		{"reply to multicast", ipc.Open{Proto: ipc.ProtoUDP, Listener: any.ID, SrcPort: any.Port, Dst: addr("224.0.0.1"), DstPort: 53}, int(unix.EACCES)},
		{"reply from another port", ipc.Open{Proto: ipc.ProtoUDP, Listener: any.ID, SrcPort: any.Port + 1, Dst: addr("198.51.100.1"), DstPort: 53}, int(unix.EINVAL)},
		{"reply from another address", ipc.Open{Proto: ipc.ProtoUDP, Listener: lo.ID, SrcPort: lo.Port, Src: addr("127.0.0.1"), Dst: addr("127.0.0.2"), DstPort: 53}, int(unix.EINVAL)},
		{"reply by a TCP listener", ipc.Open{Proto: ipc.ProtoUDP, Listener: tcp.ID, SrcPort: 1, Dst: addr("198.51.100.1"), DstPort: 53}, int(unix.EINVAL)},
		{"reply by no listener", ipc.Open{Proto: ipc.ProtoUDP, Listener: 999, SrcPort: 1, Dst: addr("198.51.100.1"), DstPort: 53}, int(unix.EINVAL)},
		{"reply of the namespace to the world", ipc.Open{Proto: ipc.ProtoUDP, Listener: ns.ID, SrcPort: ns.Port, Src: addr("127.0.0.1"), Dst: addr("198.51.100.1"), DstPort: 53}, int(unix.EACCES)},

		{"bypass by no listener", ipc.Open{Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: 999, Src: addr("127.0.0.1"), Dst: addr("127.0.0.1"), DstPort: 1}, int(unix.EINVAL)},
		{"bypass by a listener without", ipc.Open{Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: tcp.ID, Src: addr("127.0.0.1"), Dst: addr("127.0.0.1"), DstPort: 1}, int(unix.EINVAL)},
		{"bypass of another protocol", ipc.Open{Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: ns.ID, Src: addr("127.0.0.1"), Dst: addr("127.0.0.1"), DstPort: 1}, int(unix.EINVAL)},
		{"bypass to the world", ipc.Open{Proto: ipc.ProtoUDP, Flags: ipc.OpenBypass, Listener: ns.ID, Src: addr("198.51.100.1"), Dst: addr("127.0.0.1"), DstPort: 1}, int(unix.EACCES)},
		{"bypass to denied loopback", ipc.Open{Proto: ipc.ProtoUDP, Flags: ipc.OpenBypass, Listener: ns.ID, Src: addr("127.0.0.1"), Dst: addr("127.0.0.1"), DstPort: 1}, none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.open.Src == ([16]byte{}) && netip.AddrFrom16(tt.open.Dst).Is4In6() {
				tt.open.Src = addr("0.0.0.0")
			}
			if _, err := unix.Write(w.worker, encode(tt.open)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, ipc.MaxRecord)
			n, fd, err := ipc.Receive(w.worker, buf, 0)
			if err != nil {
				t.Fatal(err)
			}
			var o ipc.Opened
			if err := o.Decode(buf[:n]); err != nil {
				t.Fatal(err)
			}
			if fd >= 0 || o.Errno == 0 {
				t.Fatalf("opened to %v", netip.AddrFrom16(o.Addr))
			}
			byRules := o.Flags&ipc.OpenedProhibited != 0
			if byRules != (tt.want == none) || tt.want != none && int(o.Errno) != tt.want {
				t.Errorf("error %v, by the rules: %v", unix.Errno(o.Errno), byRules)
			}
		})
	}
}

// TestDeafWorker asks and does not read the answers: it is given up, soon, and
// nothing grows meanwhile.
func TestDeafWorker(t *testing.T) {
	before := descriptorCount(t)
	w := work(t)
	msg := bytes.Repeat(encode(goodOpen), ipc.MaxBatch)
	asked := make(chan bool)
	go func() {
		defer close(asked)
		for {
			if _, err := unix.Write(w.worker, msg); err != nil {
				return
			}
		}
	}()
	if err := w.end(t); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	<-asked // or it writes to who has the descriptor next
	unix.Close(w.worker)
	w.worker = -1
	if n := descriptorCount(t); n > before {
		t.Errorf("%d descriptors left", n-before)
	}
}

// freePort returns a port that is free on an address, for both protocols as far
// as nobody takes it meanwhile.
func freePort(t *testing.T, addr string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// TestRevive: what a worker has shut down hears again for the next.
func TestRevive(t *testing.T) {
	const addr = "127.0.0.3"
	for _, tt := range []struct {
		proto   uint8
		network string
	}{{ipc.ProtoTCP, "tcp4"}, {ipc.ProtoUDP, "udp4"}} {
		for _, how := range []int{-1, unix.SHUT_RD, unix.SHUT_WR, unix.SHUT_RDWR} {
			t.Run(fmt.Sprintf("%s, shutdown %d", tt.network, how), func(t *testing.T) {
				w := work(t)
				l, err := w.Listen(Listener{Proto: tt.proto, Addr: netip.MustParseAddr(addr), Port: freePort(t, addr)})
				if err != nil {
					t.Fatal(err)
				}
				theirs, err := unix.Dup(l.FD) // a worker's, which is gone by then
				if err != nil {
					t.Fatal(err)
				}
				if how >= 0 {
					_ = unix.Shutdown(theirs, how)
				}
				unix.Close(theirs)
				again, err := w.Revive(l)
				if err != nil || again.ID != l.ID || again.Port != l.Port || how < 0 && again.FD != l.FD {
					t.Fatalf("%+v, %v; was %+v", again, err, l)
				}
				defer w.Unlisten(l.ID)
				if got, ok := w.listener(l.ID); !ok || got.FD != again.FD {
					t.Errorf("%+v in the table", got)
				}
				c, err := net.Dial(tt.network, netip.AddrPortFrom(l.Addr, l.Port).String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, _ = c.Write([]byte("?"))
				p := []unix.PollFd{{Fd: int32(again.FD), Events: unix.POLLIN | unix.POLLRDHUP}}
				if n, err := unix.Poll(p, 10_000); n != 1 || err != nil || p[0].Revents != unix.POLLIN {
					t.Errorf("events %#x, %v", p[0].Revents, err)
				}
			})
		}
	}
}

// TestReviveLater: a port that cannot be had again is not given up for that.
func TestReviveLater(t *testing.T) {
	w := work(t)
	const addr = "127.0.0.3"
	l, err := w.Listen(Listener{Proto: ipc.ProtoUDP, Addr: netip.MustParseAddr(addr), Port: freePort(t, addr)})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Unlisten(l.ID)
	_ = unix.Shutdown(l.FD, unix.SHUT_RDWR)
	for _, shares := range []int{0, 1} { // with another socket of ours
		if err := unix.SetsockoptInt(l.FD, unix.SOL_SOCKET, unix.SO_REUSEPORT, shares); err != nil {
			t.Fatal(err)
		}
		again, err := w.Revive(l)
		if got, ok := w.listener(l.ID); !ok || got.FD != again.FD || again.ID != l.ID || (err == nil) != (shares == 1) || (again.FD == l.FD) != (shares == 0) {
			t.Errorf("shares %d: %+v, %v; %+v in the table", shares, again, err, got)
		}
	}
}

// TestRefusalsArePaced: a worker that goes on asking for what it does not get is
// answered less often than one that is served, and its broker sleeps meanwhile.
func TestRefusalsArePaced(t *testing.T) {
	w := work(t, egress.Rule{Dest: "any"})
	const asked = 2 * paceBurst / refusalRecords
	began := time.Now()
	buf := make([]byte, ipc.OpenedSize)
	for range asked {
		if _, err := unix.Write(w.worker, encode(goodOpen)); err != nil {
			t.Fatal(err)
		}
		if n, fd, err := ipc.Receive(w.worker, buf, 0); err != nil || n != ipc.OpenedSize || fd >= 0 {
			t.Fatalf("%d bytes, descriptor %d, %v", n, fd, err)
		}
	}
	least := time.Duration(asked*(1+refusalRecords)-paceBurst) * time.Second / pacePerSecond
	if took := time.Since(began); took < least/2 {
		t.Errorf("%d refusals took %v", asked, took)
	}
}
