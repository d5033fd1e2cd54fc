// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/hostnet"
	"aldente/broker/plan"
	"aldente/broker/ports"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// host is a factory, a namespace and a worker that note what they are asked.
type host struct {
	busy      map[uint16]error // ports of the host that cannot be had
	listeners []sockets.Listener
	lastID    uint32

	bound   map[uint8][]uint16               // in the namespace, by protocol
	scan    error                            // why that cannot be listed
	opens   func(ipc.AgentOpen) (int, error) // the agent
	told    []string                         // the worker
	strayed map[uint16]bool                  // ports of listeners whose interface is another now
	rebinds int
	shut    bool
	stopped bool

	changed func()   // the agent has news
	beside  []uint16 // ports of listeners that Beside has made
}

func (h *host) Listen(l sockets.Listener) (sockets.Listener, error) {
	l, err := h.Bind(l)
	if err != nil {
		return l, err
	}
	return h.Adopt(l), nil
}

func (h *host) Bind(l sockets.Listener) (sockets.Listener, error) { return l, h.busy[l.Port] }

func (h *host) Adopt(l sockets.Listener) sockets.Listener {
	h.lastID++
	l.ID = h.lastID
	h.listeners = append(h.listeners, l)
	return l
}

func (h *host) Dropped(id uint32) uint64 { return uint64(id) }

func (h *host) Revive(l sockets.Listener) (sockets.Listener, error) { return l, h.busy[l.Port] }

func (h *host) Strayed(l *sockets.Listener) (string, bool) { return "", h.strayed[l.Port] }

func (h *host) Rebind(l sockets.Listener) (sockets.Listener, error) {
	h.rebinds++
	if err := h.busy[l.Port]; err != nil {
		return l, err
	}
	delete(h.strayed, l.Port)
	return l, nil
}

func (h *host) Unlisten(id uint32) (was sockets.Listener, ok bool) {
	h.listeners = slices.DeleteFunc(h.listeners, func(l sockets.Listener) bool {
		if l.ID == id {
			was, ok = l, true
		}
		return l.ID == id
	})
	return was, ok
}

// Beside notes on which ports there were listeners of rules that are to go.
func (h *host) Beside(l sockets.Listener, _ []sockets.Listener) (sockets.Listener, error) {
	h.beside = append(h.beside, l.Port)
	return h.Bind(l)
}

func (h *host) Retarget(id uint32, to sockets.Listener) sockets.Listener {
	i := slices.IndexFunc(h.listeners, func(l sockets.Listener) bool { return l.ID == id })
	l := &h.listeners[i]
	l.GuestPort, l.Target, l.Splice = to.GuestPort, to.Target, to.Splice
	return *l
}

func (h *host) Listeners() []sockets.Listener { return slices.Clone(h.listeners) }

func (h *host) Room(int) error { return nil }

func (h *host) Explain(_ *sockets.Listener, err error) error { return err }

func (h *host) Shut() { h.shut = true }

func (h *host) Open(o ipc.AgentOpen, done func(int, error)) { done(h.opens(o)) }

func (h *host) StartScan() {}

func (h *host) Changed(f func()) { h.changed = f }

func (h *host) Bound(tcp, udp *ports.Set) error {
	for _, p := range h.bound[ipc.ProtoTCP] {
		tcp.Add(p)
	}
	for _, p := range h.bound[ipc.ProtoUDP] {
		udp.Add(p)
	}
	return h.scan
}

func (h *host) Send(record []byte, _ int) error {
	var r ipc.Listener
	for what, kind := range map[string]ipc.Kind{"+": ipc.KindListener, "-": ipc.KindUnlisten, ">": ipc.KindRetarget} {
		if r.Decode(record, kind) == nil {
			h.told = append(h.told, fmt.Sprintf("%s%d", what, r.HostPort))
		}
	}
	return nil
}

func (h *host) Stop() { h.stopped = true }

// open lists what is listened on, in order.
func (h *host) open() string {
	var all []string
	for _, l := range h.listeners {
		where, proto := "", "tcp"
		if l.Namespace {
			where = "ns:"
		}
		if l.Proto == ipc.ProtoUDP {
			proto = "udp"
		}
		all = append(all, fmt.Sprintf("%s%s:%d", where, proto, l.Port))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// forwarder makes one of a command line's rules.
func forwarder(t *testing.T, h *host, command string) *Forwarder {
	t.Helper()
	args := strings.Fields(command)
	if !strings.HasPrefix(command, "passt") {
		args = append(args, "--", "true")
	}
	cfg, err := cli.Parse(args)
	if err != nil {
		t.Fatal(err)
	}
	network := &hostnet.Network{V4: hostnet.Family{Address: netip.MustParsePrefix("192.0.2.2/24")}}
	p, err := plan.New(cfg, plan.Host{Network: network, Descriptors: 1024})
	if err != nil {
		t.Fatal(err)
	}
	f := New(p, h, 1024, slog.New(slog.DiscardHandler))
	f.SetWorker(h)
	f.period = time.Hour // scans come from the test alone
	return f
}

// TestListen: which ports a rule must have.
func TestListen(t *testing.T) {
	for _, tt := range []struct {
		command string
		busy    map[uint16]error
		open    string
		err     string
	}{
		{"passt -t 80-82", nil, "tcp:80 tcp:81 tcp:82", ""},
		{"passt -t 80-82", map[uint16]error{81: unix.EACCES}, "tcp:80", "permission denied, for rule"},
		{"passt -t 80-82", map[uint16]error{81: unix.EADDRINUSE}, "tcp:80", "address already in use, for rule"},
		{"passt -t ~80-82 -u 5", map[uint16]error{80: unix.EACCES, 82: unix.EACCES}, "tcp:81 udp:5", "weak"},
	} {
		h := &host{busy: tt.busy}
		f := forwarder(t, h, strings.Replace(tt.command, "~80-82", "80-82", 1))
		if tt.err == "weak" {
			f.rules[inbound][0].Weak, tt.err = true, ""
		}
		err := f.Listen()
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.command, err, tt.err)
		}
		if got := h.open(); got != tt.open {
			t.Errorf("%s: listens on %q, want %q", tt.command, got, tt.open)
		}
	}
	weak := func(busy map[uint16]error) error {
		f := forwarder(t, &host{busy: busy}, "passt -t 80-81")
		f.rules[inbound][0].Weak = true
		return f.Listen()
	}
	if err := weak(map[uint16]error{80: unix.EADDRINUSE, 81: unix.EADDRINUSE}); err == nil || !strings.Contains(err.Error(), "no port could be bound") {
		t.Errorf("no port at all: %v", err)
	}
	if err := weak(map[uint16]error{80: unix.EMFILE}); err != nil {
		t.Errorf("no descriptors: %v", err)
	}
}

// descriptor is one that is open, to be given away.
func descriptor(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestNamespaceFallback: where lo cannot be bound to, the loopback addresses are,
// all or none.
func TestNamespaceFallback(t *testing.T) {
	const command = "pasta -t none -u none -T 80 -U none"
	for _, fails := range []bool{false, true} {
		var given []int
		h := &host{opens: func(o ipc.AgentOpen) (int, error) {
			if o.Flags&ipc.AgentOpenDevice != 0 {
				return -1, unix.EPERM
			}
			if fails && len(given) == 1 {
				return -1, unix.EADDRINUSE
			}
			given = append(given, descriptor(t))
			return given[len(given)-1], nil
		}}
		err := forwarder(t, h, command).Enter(h)
		if want := map[bool]string{false: "ns:tcp:80 ns:tcp:80"}[fails]; h.open() != want || errors.Is(err, unix.EADDRINUSE) != fails || err != nil != fails {
			t.Errorf("second fails %v: listens on %q, want %q; %v", fails, h.open(), want, err)
		}
		for _, fd := range given {
			_, e := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if open := e == nil; open == fails {
				t.Errorf("second fails %v: the first is open: %v", fails, open)
			}
			if e == nil {
				unix.Close(fd)
			}
		}
	}
	h := &host{opens: func(ipc.AgentOpen) (int, error) { return -1, unix.EADDRINUSE }}
	if err := forwarder(t, h, command).Enter(h); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "in the namespace on port 80") {
		t.Errorf("a port that is taken: %v", err)
	}
}

// TestAutoFollows: listeners follow what is bound in the namespace, and a worker
// hears of changes once it has been told of all.
func TestAutoFollows(t *testing.T) {
	h := &host{bound: map[uint8][]uint16{ipc.ProtoTCP: {80, 8080}, ipc.ProtoUDP: {5353}}}
	f := forwarder(t, h, "pasta -t auto -u auto -T none -U none")
	if err := f.Enter(h); err != nil {
		t.Fatal(err)
	}
	step := func(name, open, told string) {
		t.Helper()
		if got := h.open(); got != open {
			t.Errorf("%s: listens on %q, want %q", name, got, open)
		}
		if got := strings.Join(h.told, " "); got != told {
			t.Errorf("%s: the worker hears %q, want %q", name, got, told)
		}
		h.told = nil
	}
	// 80 is below what everybody may bind: not the guest's to have without a word.
	step("at start", "tcp:8080 udp:5353 udp:8080", "")

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	for i := range h.listeners {
		h.listeners[i].FD = pair[1]
	}
	h.busy = map[uint16]error{5353: unix.EADDRINUSE} // cannot be revived
	if err := f.SendListeners(pair[0]); err != nil {
		t.Fatal(err)
	}
	h.busy = nil
	n := 0
	buf := make([]byte, 4096)
	for ; ; n++ {
		if m, _, _, _, err := unix.Recvmsg(pair[1], buf, nil, unix.MSG_DONTWAIT); err != nil || m == 0 {
			break
		}
	}
	if n != 2 {
		t.Errorf("a new worker is told of %d listeners, want 2", n)
	}

	h.bound = map[uint8][]uint16{ipc.ProtoTCP: {9000}, ipc.ProtoUDP: {5353}}
	f.auto.sync()
	slices.Sort(h.told)
	step("another service", "tcp:9000 udp:5353 udp:9000", "+9000 +9000 -8080 -8080")

	h.bound, h.scan = nil, unix.ENOBUFS
	f.auto.sync()
	step("no list", "tcp:9000 udp:5353 udp:9000", "")

	f.WorkerGone()
	h.scan = nil
	f.auto.sync()
	step("nothing, and no worker", "", "")

	h.bound = map[uint8][]uint16{ipc.ProtoTCP: {7000}}
	h.busy = map[uint16]error{7000: unix.EADDRINUSE}
	f.auto.sync()
	step("taken", "", "")
	h.busy = nil
	f.auto.sync()
	step("free again", "tcp:7000 udp:7000", "")
}

// TestAutoNews: what the agent tells of is forwarded at once, without waiting for the next
// look; and that goes on after a time without such rules.
func TestAutoNews(t *testing.T) {
	h := &host{bound: map[uint8][]uint16{ipc.ProtoTCP: {8080}}}
	f := live(t, h, "pasta -t auto -u none -T none -U none -c x")
	open := func(want string) {
		t.Helper()
		got := ""
		for range 1000 {
			f.change.Lock()
			got = h.open()
			f.change.Unlock()
			if got == want {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("listens on %q, want %q", got, want)
	}
	bind := func(p uint16) {
		f.change.Lock()
		h.bound = map[uint8][]uint16{ipc.ProtoTCP: {p}}
		f.change.Unlock()
	}
	open("tcp:8080")
	bind(9000)
	h.changed()
	open("tcp:9000")
	if err := f.Change(plan.Rules{}); err != nil {
		t.Fatal(err)
	}
	f.auto.again()
	bind(9001)
	h.changed()
	open("")
	f.period = 20 * time.Millisecond // and nobody tells of anything
	if err := f.Change(parsed(t, "-t auto")); err != nil {
		t.Fatal(err)
	}
	open("tcp:9001")
	bind(9002)
	open("tcp:9002")
}

// TestAutoLeavesOwn: what we listen on in the namespace is no target.
func TestAutoLeavesOwn(t *testing.T) {
	h := &host{bound: map[uint8][]uint16{ipc.ProtoTCP: {7000, 7001}}}
	h.opens = func(ipc.AgentOpen) (int, error) { return -1, nil }
	f := forwarder(t, h, "pasta -t auto -u none -T 7000 -U none")
	if err := f.Enter(h); err != nil {
		t.Fatal(err)
	}
	if got, want := h.open(), "ns:tcp:7000 tcp:7001"; got != want {
		t.Errorf("listens on %q, want %q", got, want)
	}
}

// TestRegain: a port that a worker has shut down and that cannot be had again for now is
// tried again, whichever rule it is of, and told of once.
func TestRegain(t *testing.T) {
	for _, command := range []string{"passt -t 7000 -u 7000", "pasta -t none -u 7000,auto -T none -U none", "pasta -t 7000,auto -u none -T none -U none"} {
		t.Run(command, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[0])
			defer unix.Close(pair[1])
			h := &host{bound: map[uint8][]uint16{ipc.ProtoTCP: {7000}, ipc.ProtoUDP: {7000}}}
			f := forwarder(t, h, command)
			var log strings.Builder
			f.log = slog.New(slog.NewTextHandler(&log, nil))
			if err := f.Listen(); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(command, "passt") {
				if err := f.Enter(h); err != nil {
					t.Fatal(err)
				}
			}
			for i := range h.listeners {
				h.listeners[i].FD = pair[1]
			}
			ports := len(h.listeners)
			want := func(what string, told int, all bool) {
				t.Helper()
				h.told = nil
				if done := f.regain(); done != all || len(h.told) != told {
					t.Errorf("%s: all %v, want %v; the worker is told %q, want %d", what, done, all, h.told, told)
				}
			}
			h.busy = map[uint16]error{7000: unix.EADDRNOTAVAIL}
			for range 2 { // two workers, one after the other
				if err := f.SendListeners(pair[0]); err != nil {
					t.Fatal(err)
				}
				want("taken", 0, false)
				f.WorkerGone()
			}
			if f.auto != nil {
				f.auto.sync()
			}
			if n := strings.Count(log.String(), "not forwarded any more"); n != ports || len(h.listeners) != ports {
				t.Errorf("%d listeners of %d, and the log has\n%s", len(h.listeners), ports, log.String())
			}
			h.busy = nil
			want("no worker", 0, false)
			h.busy = map[uint16]error{7000: unix.EADDRNOTAVAIL}
			if err := f.SendListeners(pair[0]); err != nil {
				t.Fatal(err)
			}
			h.busy = nil
			want("free", ports, true)
			want("nothing to do", 0, true)
			if n := strings.Count(log.String(), "forwarded again"); n != ports {
				t.Errorf("%d of %d ports are forwarded again: %s", n, ports, log.String())
			}
		})
	}
	// One that is dropped meanwhile is not waited for.
	h := &host{bound: map[uint8][]uint16{ipc.ProtoUDP: {7000}}}
	f := forwarder(t, h, "pasta -t none -u auto -T none -U none")
	if err := f.Enter(h); err != nil {
		t.Fatal(err)
	}
	h.busy = map[uint16]error{7000: unix.EADDRNOTAVAIL}
	if err := f.SendListeners(-1); err != nil {
		t.Fatal(err)
	}
	h.bound = nil
	f.auto.sync()
	if h.open() != "" || !f.regain() {
		t.Errorf("listens on %q, and has lost %v", h.open(), f.lost)
	}
}

// TestRelease: the worker ends only where a UDP port would live on with it.
func TestRelease(t *testing.T) {
	for command, stops := range map[string]bool{"passt -t 80": false, "passt -u 80": true} {
		h := &host{}
		f := forwarder(t, h, command)
		if err := f.Listen(); err != nil {
			t.Fatal(err)
		}
		if f.Release(); !h.shut || h.stopped != stops {
			t.Errorf("%s: shut %v, the worker stopped %v", command, h.shut, h.stopped)
		}
	}
}
