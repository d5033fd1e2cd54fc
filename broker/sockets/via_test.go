// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/ipc"
	"aldente/ipc/domain"
)

// dest is a destination that there is nowhere.
var dest = netip.MustParseAddrPort("198.51.100.7:443")

// workVia is a factory at work whose flows go by a proxy.
func workVia(t *testing.T, change func(*Via), looked ...uint16) (w *atWork, l *looker, rules *byName, accept func() (closed func() bool)) {
	t.Helper()
	server, port := listenAt(t, "tcp", "127.0.0.1:0")
	w, l, rules, _ = workLooked(t, looked...)
	w.cfg().Via = &Via{To: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Text: "socks5://127.0.0.1:1080"}
	if change != nil {
		change(w.cfg().Via)
	}
	return w, l, rules, func() func() bool {
		c, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return func() bool {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, err := c.Read(make([]byte, 1))
			return n == 0 && !isTimeout(err)
		}
	}
}

func toDest(proto uint8, token uint64) ipc.Open {
	src := netip.MustParseAddr("192.0.2.3")
	return ipc.Open{Token: token, Proto: proto, Src: src.As16(), SrcPort: 40000, Dst: dest.Addr().As16(), DstPort: dest.Port()}
}

// relays is the request that a process for names gets, with the socket.
func (l *looker) relays() (r ipc.Relay, h *heard) {
	l.t.Helper()
	h = l.next(ipc.NamesKindRelay)
	if err := r.Decode(h.rec); err != nil || h.fd < 0 {
		l.t.Fatal(err)
	}
	return r, h
}

// late is the answer that counts, behind the one that says to wait.
func (w *atWork) late(t *testing.T, token uint64) (int, ipc.Opened) {
	t.Helper()
	for {
		fd, a := w.opened(t)
		if fd >= 0 {
			t.Cleanup(func() { unix.Close(fd) })
		}
		switch {
		case a.Flags&ipc.OpenedWait != 0: // which may come behind the other
		case a.Token != token:
			t.Fatalf("%+v", a)
		default:
			return fd, a
		}
	}
}

func (w *atWork) begin(t *testing.T, o ipc.Open) {
	t.Helper()
	if _, err := unix.Write(w.worker, encode(o)); err != nil {
		t.Fatal(err)
	}
}

// TestByProxy: the worker has no socket before the proxy has said yes, and the one to the
// proxy then; the process for names is told the address, or with an option the name.
func TestByProxy(t *testing.T) {
	for _, names := range []bool{false, true} {
		w, l, _, accept := workVia(t, func(v *Via) { v.Names = names })
		w.begin(t, toDest(ipc.ProtoTCP, 5))
		accept()
		r, h := l.relays()
		want := map[bool]string{true: "good.test"}[names]
		if r.Addr != dest.Addr().As16() || r.Port != dest.Port() || r.Name.String() != want {
			t.Fatalf("%+v", r)
		}
		l.says((&ipc.Passed{ID: r.ID, Count: 1}).Encode()) // nobody has asked for that
		l.found(r.ID, "good.test")
		l.says((&ipc.Staged{ID: r.ID, Found: ipc.FoundEnd}).Encode())
		l.silent()
		if u := w.Proxied(); u != (ProxyUsage{Waiting: 1}) {
			t.Errorf("%+v", u)
		}
		l.says((&ipc.Relayed{ID: r.ID, Result: ipc.RelayDone}).Encode())
		fd, a := w.late(t, 5)
		if u, others := w.Proxied(), w.Stages(); u != (ProxyUsage{Connected: 1}) || others != (StageUsage{}) {
			t.Errorf("%+v, and %+v as looked at", u, others)
		}
		if fd < 0 || a.Flags != ipc.OpenedLate || a.Errno != 0 || a.PeerPort != dest.Port() || a.Addr != dest.Addr().As16() {
			t.Fatalf("%+v", a)
		}
		sa, err := unix.Getpeername(fd)
		if v4, ok := sa.(*unix.SockaddrInet4); err != nil || !ok || v4.Port != int(w.cfg().Via.To.Port()) {
			t.Errorf("the socket leads to %v, %v", sa, err)
		}
		h.close()
		l.says((&ipc.Relayed{ID: r.ID, Result: ipc.RelayDenied}).Encode()) // too late
		l.silent()
	}
}

// TestByProxyRefused: what the proxy answers is what the guest hears; a process for names
// that hangs, dies or is not there leaves no flow that hangs.
func TestByProxyRefused(t *testing.T) {
	says := func(result uint8, code uint16) func(l *looker, id uint32, rules *byName) {
		return func(l *looker, id uint32, _ *byName) {
			l.says((&ipc.Relayed{ID: id, Result: result, Code: code}).Encode())
		}
	}
	for name, c := range map[string]struct {
		says    func(l *looker, id uint32, rules *byName)
		errno   unix.Errno
		counted ProxyUsage
	}{
		"denied":      {says(ipc.RelayDenied, 3), unix.EACCES, ProxyUsage{Refused: 1}},
		"user":        {says(ipc.RelayAuth, 3), unix.EACCES, ProxyUsage{Refused: 1}},
		"network":     {says(ipc.RelayNetwork, 3), unix.ENETUNREACH, ProxyUsage{Refused: 1}},
		"host":        {says(ipc.RelayHost, 3), unix.EHOSTUNREACH, ProxyUsage{Refused: 1}},
		"refused":     {says(ipc.RelayRefused, 3), unix.ECONNREFUSED, ProxyUsage{Refused: 1}},
		"time":        {says(ipc.RelayTimeout, 3), unix.ETIMEDOUT, ProxyUsage{Refused: 1}},
		"unsupported": {says(ipc.RelayUnsupported, 3), unix.ENETUNREACH, ProxyUsage{Refused: 1}},
		"failed":      {says(ipc.RelayFailed, 3), unix.ECONNREFUSED, ProxyUsage{Refused: 1}},
		"garbage":     {says(ipc.RelayGarbage, 3), unix.ECONNRESET, ProxyUsage{Failed: 1}},
		"closed":      {says(ipc.RelayClosed, 0), unix.ECONNRESET, ProxyUsage{Failed: 1}},
		"no room":     {says(ipc.RelayNoRoom, 0), unix.EAGAIN, ProxyUsage{Failed: 1}},
		"dies":        {func(l *looker, id uint32, _ *byName) { l.f.StagesGone() }, unix.ECONNRESET, ProxyUsage{Failed: 1}},
		"hangs":       {func(l *looker, id uint32, _ *byName) {}, unix.ETIMEDOUT, ProxyUsage{Failed: 1}},
		"rules change": {func(l *looker, id uint32, rules *byName) {
			rules.mu.Lock()
			rules.none = true
			rules.mu.Unlock()
			l.says((&ipc.Relayed{ID: id, Result: ipc.RelayDone}).Encode())
		}, unix.EACCES, ProxyUsage{Connected: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "hangs" {
				defer func(d time.Duration) { stageTime = d }(stageTime)
				stageTime = 100 * time.Millisecond
			}
			w, l, rules, accept := workVia(t, nil)
			w.begin(t, toDest(ipc.ProtoTCP, 6))
			closed := accept()
			r, h := l.relays()
			h.close()
			c.says(l, r.ID, rules)
			if fd, a := w.late(t, 6); fd >= 0 || unix.Errno(a.Errno) != c.errno || a.Flags != ipc.OpenedLate {
				t.Errorf("%+v", a)
			}
			l.next(ipc.NamesKindStageEnd)
			if !closed() {
				t.Error("the socket to the proxy stays")
			}
			if u, others := w.Proxied(), w.Stages(); u != c.counted || others != (StageUsage{}) {
				t.Errorf("counted as %+v, and %+v as looked at", u, others)
			}
		})
	}
	w, l, _, accept := workVia(t, nil)
	l.dead = true
	w.begin(t, toDest(ipc.ProtoTCP, 6))
	closed := accept()
	if fd, a := w.late(t, 6); fd >= 0 || unix.Errno(a.Errno) != unix.ECONNRESET || !closed() {
		t.Errorf("without a process: %+v", a)
	}
	l.dead, l.full = false, true
	w.begin(t, toDest(ipc.ProtoTCP, 8))
	closed = accept()
	if fd, a := w.late(t, 8); fd >= 0 || unix.Errno(a.Errno) != unix.EAGAIN || !closed() {
		t.Errorf("with one that has no room: %+v", a)
	}
	w.stages.send = nil
	w.begin(t, toDest(ipc.ProtoTCP, 7))
	if fd, a := w.late(t, 7); fd >= 0 || unix.Errno(a.Errno) != unix.EACCES {
		t.Errorf("where there is none: %+v", a)
	}
}

// TestByProxyLooked: a flow that is looked at is so once the proxy has said yes.
func TestByProxyLooked(t *testing.T) {
	w, l, _, accept := workVia(t, nil, dest.Port())
	w.begin(t, toDest(ipc.ProtoTCP, 8))
	accept()
	r, h := l.relays()
	h.close()
	l.says((&ipc.Relayed{ID: r.ID, Result: ipc.RelayDone}).Encode())
	if fd, a := w.late(t, 8); fd < 0 || a.Flags != ipc.OpenedLate|ipc.OpenedStaged {
		t.Fatalf("%+v", a)
	}
	id, what, _ := l.begins()
	if what != ipc.StageTLS {
		t.Error(what)
	}
	l.says((&ipc.Relayed{ID: id, Result: ipc.RelayDone}).Encode()) // it was never asked
	l.silent()
	l.found(id, "good.test")
	l.next(ipc.NamesKindStageSocket).close()
	l.says((&ipc.Passed{ID: id, Count: 3}).Encode())
	if fd, s := w.switched(t, 8); fd < 0 || s.Count != 3 {
		t.Errorf("%+v", s)
	}
}

// TestProxyDecides: which flows go by the proxy, which do not, and which are refused.
func TestProxyDecides(t *testing.T) {
	v := &Via{To: netip.MustParseAddrPort("192.0.2.9:1080"), Except: []netip.Prefix{netip.MustParsePrefix("198.51.100.128/25")}, Text: "http://192.0.2.9:1080"}
	mapped := netip.MustParseAddr("192.0.2.1")
	redirect, err := egress.ParseRedirect("tcp:203.0.113.1=192.0.2.9:1080")
	if err != nil {
		t.Fatal(err)
	}
	c := &Config{Via: v, Egress: &byName{may: []domain.Name{"good.test"}}, Redirects: egress.NewRedirects([]egress.Redirect{redirect}),
		V4: Family{Enabled: true, MapHostLoopback: mapped, Interface: "eth7"}}
	for _, tt := range []struct {
		proto   uint8
		dst     string
		via     bool
		refused unix.Errno
	}{
		{ipc.ProtoTCP, "198.51.100.7:443", true, 0},
		{ipc.ProtoUDP, "198.51.100.7:443", false, unix.EACCES},
		{ipc.ProtoICMP, "198.51.100.7:0", false, unix.EACCES},
		{ipc.ProtoTCP, "198.51.100.200:443", false, 0},
		{ipc.ProtoUDP, "198.51.100.200:443", false, 0},
		{ipc.ProtoTCP, "192.0.2.1:443", false, 0}, // the host's loopback
		{ipc.ProtoUDP, "192.0.2.1:443", false, 0},
		{ipc.ProtoTCP, "127.0.0.1:443", false, unix.EACCES},
		{ipc.ProtoTCP, "192.0.2.9:1080", false, unix.EACCES}, // the proxy itself
		{ipc.ProtoTCP, "192.0.2.9:1081", true, 0},
		{ipc.ProtoTCP, "203.0.113.1:9", false, 0}, // it, by an option that says so
	} {
		q := request{proto: tt.proto, src: netip.MustParseAddrPort("192.0.2.3:40000"), dst: netip.MustParseAddrPort(tt.dst)}
		d := c.decide(&q)
		if (d.via != nil) != tt.via || d.refused != tt.refused {
			t.Errorf("%s %s: by the proxy %v, %v", protoName(tt.proto), tt.dst, d.via != nil, d.refused)
		}
		if tt.via && (!strings.Contains(d.rule(), "--via http://192.0.2.9:1080") || !strings.Contains(d.rule(), "--allow good.test")) {
			t.Errorf("rule %q", d.rule())
		}
	}
	if d := c.toProxy(); d.to != v.To || d.Interface != "eth7" {
		t.Errorf("%+v", d)
	}
	for _, at := range []string{"127.0.0.1:1080", "[::1]:1080"} { // those of the host's loopback answer on either
		v.To = netip.MustParseAddrPort(at)
		if d := c.toProxy(); d.Interface != "" {
			t.Errorf("the host's loopback by %s", d.Interface)
		}
		q := request{proto: ipc.ProtoTCP, src: netip.MustParseAddrPort("192.0.2.3:40000"), dst: netip.AddrPortFrom(mapped, 1080)}
		if d := c.decide(&q); d.refused != unix.EACCES || !strings.Contains(d.rule(), "the proxy is not for the guest") {
			t.Errorf("%s by the host's loopback: %v, rule %q", at, d.refused, d.rule())
		}
		v.Except = append(v.Except, netip.MustParsePrefix("127.0.0.0/8"))
		if d := c.decide(&q); d.refused != 0 {
			t.Errorf("what is excepted: %v", d.refused)
		}
		v.Except = v.Except[:1]
	}
}

// TestProxyAway: a proxy that refuses the connection is what the guest hears, and the log.
func TestProxyAway(t *testing.T) {
	w, l, _, _ := workVia(t, func(v *Via) { v.To = netip.AddrPortFrom(v.To.Addr(), 1) })
	w.begin(t, toDest(ipc.ProtoTCP, 9))
	if fd, a := w.late(t, 9); fd >= 0 || unix.Errno(a.Errno) != unix.ECONNREFUSED {
		t.Errorf("%+v", a)
	}
	l.silent()
}

// TestCapturedRelay: records that make no sense are the end of whoever sends them.
func TestCapturedRelay(t *testing.T) {
	w, _, _, _ := workVia(t, nil)
	bad := (&ipc.Relayed{ID: 1, Result: ipc.RelayDone}).Encode()
	bad[12] = 200
	for _, rec := range [][]byte{bad, bad[:9], (&ipc.Relayed{ID: 1}).Encode()} {
		if err := w.FromNames(ipc.NamesKindRelayed, rec); !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%x: %v", rec, err)
		}
	}
	if e := w.Why(ipc.ProtoUDP, dest); e.Allowed || !slices.ContainsFunc(e.Steps, func(s Step) bool { return s.What == "proxy" }) {
		t.Errorf("%+v", e)
	}
}
