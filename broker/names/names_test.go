// SPDX-License-Identifier: Apache-2.0

package names

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/ipc"
	"aldente/ipc/ipctest"
)

// rig is a server with a process that a test speaks for.
type rig struct {
	*Server
	t       *testing.T
	control int // the process's end
	broker  int
	notes   int // the process's end, see start
	ended   chan error
	log     *bytes.Buffer
	mu      sync.Mutex
	dialled []string
	refused []string
	killed  int
	renewed int
	serving sync.WaitGroup
}

// Upstream implements Sockets.
func (r *rig) Upstream(proto uint8, resolver netip.Addr) (int, unix.Errno) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dialled = append(r.dialled, fmt.Sprintf("%d %v", proto, resolver))
	if proto == ipc.ProtoTCP {
		return -1, unix.ENETUNREACH
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, unix.EMFILE
	}
	return fd, 0
}

// NameRefused implements FlowLog.
func (r *rig) NameRefused(name, typ, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = append(r.refused, name+" "+typ+" "+reason)
}

// Send implements Process, and PassNow.
func (r *rig) Send(rec []byte, fd int) error    { return ipc.Send(r.broker, rec, fd) }
func (r *rig) PassNow(rec []byte, fd int) error { return ipc.SendNow(r.broker, rec, fd) }
func (r *rig) Kill()                            { r.killed++ }
func (r *rig) Renew()                           { r.renewed++ }

// rules are egress rules as they would be given.
func rules(t *testing.T, options ...string) *egress.RuleSet {
	t.Helper()
	var all []egress.Rule
	for _, o := range options {
		dest, allow := strings.CutPrefix(o, "allow ")
		all = append(all, egress.Rule{Allow: allow, Dest: strings.TrimPrefix(dest, "deny ")})
	}
	e, err := egress.New(all, []netip.Addr{netip.MustParseAddr("192.0.2.2")})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func newRig(t *testing.T, e Rules, resolvers ...string) *rig {
	t.Helper()
	r := &rig{t: t, notes: -1, ended: make(chan error, 1), log: &bytes.Buffer{}}
	o := Options{Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Rules: e, Sockets: r, FlowLog: r}
	for _, a := range resolvers {
		o.Resolvers = append(o.Resolvers, netip.MustParseAddr(a))
	}
	r.Server = New(o)
	r.SetProcess(r)
	var err error
	if r.broker, r.control, err = ipc.Pair(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Before the numbers are another's: nobody serves any more.
		unix.Shutdown(r.control, unix.SHUT_RDWR)
		r.serving.Wait()
		unix.Close(r.control)
		unix.Close(r.broker)
		if r.notes >= 0 {
			unix.Close(r.notes)
		}
		r.Close()
	})
	return r
}

func (r *rig) serve() {
	broker := r.broker
	r.serving.Go(func() { r.ended <- r.Serve(broker) })
}

func (r *rig) say(rec []byte, fd int) {
	r.t.Helper()
	if err := ipc.Send(r.control, rec, fd); err != nil {
		r.t.Fatal(err)
	}
}

// hear waits for a record of a kind.
func (r *rig) hear(kind ipc.Kind) (rec []byte, fd int) {
	r.t.Helper()
	p := []unix.PollFd{{Fd: int32(r.control), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 10_000); n != 1 {
		r.t.Fatalf("nothing is said: %v", err)
	}
	buf := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(r.control, buf, 0)
	if err != nil || ipc.KindOf(buf[:n]) != kind {
		r.t.Fatalf("kind %#x, %v, want %#x", ipc.KindOf(buf[:n]), err, kind)
	}
	return buf[:n], fd
}

// end waits for the process's end.
func (r *rig) end() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(10 * time.Second):
		r.t.Fatal("it goes on")
		return nil
	}
}

func named(name string, addrs ...string) []byte {
	n := ipc.Named{Seq: 7, TTL: 60, Type: 1}
	n.Name, _ = ipc.MakeName(name)
	for _, a := range addrs {
		n.Addr[n.Count] = netip.MustParseAddr(a).As16()
		n.Count++
	}
	b := make([]byte, ipc.NamedSize)
	n.Encode(b)
	return b
}

// TestSetup: a process is told how many resolvers there are, and the rules, in order. It
// hears of others when they change, and not when they do not.
func TestSetup(t *testing.T) {
	e := rules(t, "allow tcp:pypi.test:443", "deny *.bad.test", "allow *.test", "deny any")
	r := newRig(t, e, "192.0.2.53", "2001:db8::53")
	if err := r.Setup(r.broker); err != nil {
		t.Fatal(err)
	}
	check := func(want string) {
		t.Helper()
		got := ""
		for {
			p := []unix.PollFd{{Fd: int32(r.control), Events: unix.POLLIN}}
			if n, _ := unix.Poll(p, 10_000); n != 1 {
				t.Fatal("no end")
			}
			buf := make([]byte, ipc.MaxRecord)
			n, _, err := ipc.Receive(r.control, buf, 0)
			if err != nil {
				t.Fatal(err)
			}
			switch rec := buf[:n]; ipc.KindOf(rec) {
			case ipc.NamesKindConfig:
				var c ipc.NamesConfig
				if err := c.Decode(rec); err != nil {
					t.Fatal(err)
				}
				got += fmt.Sprintf("%d resolvers; ", c.Resolvers)
			case ipc.NamesKindRule:
				var n ipc.NamesRule
				if err := n.Decode(rec); err != nil {
					t.Fatal(err)
				}
				got += fmt.Sprintf("%d %d %s; ", n.Index, n.Flags, n.Pattern.String())
			case ipc.NamesKindRules:
				var n ipc.NamesRules
				if err := n.Decode(rec); err != nil {
					t.Fatal(err)
				}
				got += fmt.Sprintf("%d rules, %d", n.Count, n.Default)
				if got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				return
			}
		}
	}
	check("2 resolvers; 0 3 pypi.test; 1 0 *.bad.test; 2 1 *.test; 3 rules, 0")
	_, fd := r.hear(ipc.NamesKindStart)
	unix.Close(fd)
	r.Ready() // nothing has changed
	if err := e.Replace([]egress.Rule{{Allow: true, Dest: "other.test"}}); err != nil {
		t.Fatal(err)
	}
	r.Update()
	check("0 1 other.test; 1 rules, 1")
}

// TestDial: sockets come to the resolvers that the configuration names, and no others.
func TestDial(t *testing.T) {
	r := newRig(t, rules(t, "allow a.test", "deny any"), "192.0.2.53", "2001:db8::53")
	r.serve()
	many := append((&ipc.Dial{Seq: 1, Resolver: 1, Proto: ipc.ProtoUDP}).Encode(), (&ipc.Dial{Seq: 2, Resolver: 0, Proto: ipc.ProtoTCP}).Encode()...)
	r.say(many, -1)
	var u ipc.Upstream
	rec, fd := r.hear(ipc.NamesKindUpstream)
	if err := u.Decode(rec); err != nil || u != (ipc.Upstream{Seq: 1, Resolver: 1, Proto: ipc.ProtoUDP}) || fd < 0 {
		t.Errorf("%+v, descriptor %d, %v", u, fd, err)
	}
	unix.Close(fd)
	rec, fd = r.hear(ipc.NamesKindUpstream)
	if err := u.Decode(rec); err != nil || u != (ipc.Upstream{Seq: 2, Proto: ipc.ProtoTCP, Errno: uint16(unix.ENETUNREACH)}) || fd >= 0 {
		t.Errorf("%+v, descriptor %d, %v", u, fd, err)
	}
	r.say((&ipc.Dial{Resolver: 2, Proto: ipc.ProtoUDP}).Encode(), -1)
	if err := r.end(); !errors.Is(err, ipc.ErrMalformed) {
		t.Errorf("a third resolver: %v", err)
	}
	if len(r.dialled) != 2 || r.dialled[0] != "17 2001:db8::53" || r.dialled[1] != "6 192.0.2.53" {
		t.Errorf("%q", r.dialled)
	}
}

// TestNoResolver: where there is none, a question fails at once, and the process lives.
func TestNoResolver(t *testing.T) {
	r := newRig(t, rules(t, "allow a.test", "deny any"))
	r.serve()
	r.say((&ipc.Dial{Seq: 3, Proto: ipc.ProtoUDP}).Encode(), -1)
	var u ipc.Upstream
	if rec, fd := r.hear(ipc.NamesKindUpstream); u.Decode(rec) != nil || u.Errno == 0 || fd >= 0 {
		t.Errorf("%+v, descriptor %d", u, fd)
	}
}

// TestGrant: addresses that a rule denies are not granted, whatever a process says of
// names; and what is granted the guest may connect to, where the rule by name says so.
func TestGrant(t *testing.T) {
	e := rules(t, "deny private", "deny metadata", "deny host", "deny 198.51.100.66", "allow tcp:pypi.test:443", "allow tcp:*.hosted.test:443", "deny any")
	r := newRig(t, e, "192.0.2.53")
	r.serve()
	for _, tt := range []struct {
		name  string
		addrs []string
		want  uint64
	}{
		{"pypi.test", []string{"198.51.100.20", "2001:db8::20"}, 3},
		{"a.b.hosted.test", []string{"198.51.100.21"}, 1},
		{"hosted.test", []string{"198.51.100.22"}, 0},
		{"other.test", []string{"198.51.100.22", "198.51.100.20"}, 0},
		{"pypi.test", []string{"10.1.2.3", "169.254.169.254", "127.0.0.1", "192.0.2.2", "198.51.100.66", "198.51.100.23"}, 1 << 5},
		{"pypi.test", []string{"::ffff:10.1.2.3", "64:ff9b::a9fe:a9fe", "2002:a01:203::1", "fd00:ec2::254", "fd12::1", "::1"}, 0},
		{"pypi.test", []string{"0.0.0.0", "::", "224.0.0.1", "255.255.255.255"}, 0},
		{"pypi.test", nil, 0},
	} {
		if len(tt.addrs) > 0 && (tt.addrs[0] == "0.0.0.0") {
			tt.addrs = []string{"::ffff:0.0.0.0", "224.0.0.1", "255.255.255.255", "ff02::1"} // all zeros is no record
		}
		r.say(named(tt.name, tt.addrs...), -1)
		rec, _ := r.hear(ipc.NamesKindGranted)
		var g ipc.Granted
		if err := g.Decode(rec); err != nil || g.Seq != 7 || g.Mask != tt.want {
			t.Errorf("%s %v: %+v, %v, want %#x", tt.name, tt.addrs, g, err, tt.want)
		}
	}
	for to, want := range map[string]bool{
		"198.51.100.20:443": true, "[2001:db8::20]:443": true, "198.51.100.21:443": true, "198.51.100.23:443": true,
		"198.51.100.20:80": false, "198.51.100.22:443": false, "10.1.2.3:443": false, "169.254.169.254:443": false, "127.0.0.1:443": false,
		"192.0.2.2:443": false, "198.51.100.66:443": false, "[64:ff9b::a9fe:a9fe]:443": false, "[fd00:ec2::254]:443": false, "[::1]:443": false,
	} {
		if got := e.Allowed(ipc.ProtoTCP, netip.MustParseAddrPort(to)); got != want {
			t.Errorf("%s: allowed %v, want %v", to, got, want)
		}
	}
}

// TestHostileProcess: what no process of ours sends is its end.
func TestHostileProcess(t *testing.T) {
	spare, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(spare)
	open := (&ipc.Open{}).Encode
	worker := make([]byte, ipc.OpenSize)
	open(worker)
	for what, m := range map[string]struct {
		rec []byte
		fd  int
	}{
		"a worker's record":           {worker, -1},
		"a record of the broker's":    {(&ipc.Granted{}).Encode(), -1},
		"ready again":                 {ipc.Empty(ipc.NamesKindReady), -1},
		"a descriptor where none is":  {named("a.test", "192.0.2.9"), spare},
		"a descriptor with a dial":    {(&ipc.Dial{Proto: ipc.ProtoUDP}).Encode(), spare},
		"half a record":               {named("a.test", "192.0.2.9")[:100], -1},
		"no header":                   {[]byte{1}, -1},
		"a name in upper case":        {named("A.test", "192.0.2.9"), -1},
		"a name with a dot behind it": {named("a.test.", "192.0.2.9"), -1},
		"a star":                      {named("*.test", "192.0.2.9"), -1},
		"an empty label":              {named("a..test", "192.0.2.9"), -1},
		"a label too long":            {named(strings.Repeat("a", 64)+".test", "192.0.2.9"), -1},
		"a name too long":             {named(strings.Repeat("a.", 127)+"a", "192.0.2.9"), -1},
	} {
		r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53")
		r.serve()
		r.say(m.rec, m.fd)
		if err := r.end(); !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestRecordsTaken: the server takes what the table of kinds permits, and nothing else.
func TestRecordsTaken(t *testing.T) {
	for _, m := range ipctest.Messages(ipctest.Records()) {
		r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53", "192.0.2.54")
		r.Other = func(ipc.Kind, []byte) error { return nil } // of flows that are looked at
		r.serve()
		fd := -1
		if m.FD {
			fd = r.control
		}
		r.say(m.Bytes, fd)
		want := ipctest.Permitted(&m, ipc.FromNames, ipc.Running)
		if want {
			unix.Shutdown(r.control, unix.SHUT_WR)
		}
		if err := r.end(); want != errors.Is(err, io.EOF) || want == errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%s: %v, the table says %v", m.Name, err, want)
		}
		unix.Close(r.control)
		unix.Close(r.broker)
		r.control, r.broker = -1, -1
	}
}

// TestFlood: what a process may have handled in a second is bounded, whatever it sends, and
// so is what its broker writes into the log.
func TestFlood(t *testing.T) {
	r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53")
	r.serve()
	start := time.Now()
	const n = 15_000
	for i := range n {
		name, _ := ipc.MakeName(fmt.Sprintf("n%d.example", i))
		r.say((&ipc.Refused{Type: 16, Why: ipc.RefusedByRule, Name: name}).Encode(), -1)
	}
	unix.Shutdown(r.control, unix.SHUT_WR)
	if err := r.end(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if took, least := time.Since(start), time.Duration(n-pace.Burst)*time.Second/time.Duration(pace.PerSecond); took < least*9/10 {
		t.Errorf("%d records within %v, at least %v is meant", n, took, least)
	}
	if lines := strings.Count(r.log.String(), "\n"); lines > 100 {
		t.Errorf("%d lines", lines)
	}
	if len(r.refused) != n {
		t.Errorf("%d names in the flow log, which bounds its lines itself", len(r.refused))
	}
}

// TestRefused: a name that is refused is told of once, and again only where debugging is
// shown; the flow log hears of each.
func TestRefused(t *testing.T) {
	r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53")
	r.serve()
	name, _ := ipc.MakeName("bad.example")
	for _, why := range []uint8{ipc.RefusedByRule, ipc.RefusedByRule, ipc.RefusedAlias, ipc.NotRefused} {
		r.say((&ipc.Refused{Type: 65, Why: why, Name: name}).Encode(), -1)
	}
	unix.Shutdown(r.control, unix.SHUT_WR)
	r.end()
	if log := r.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "name=bad.example type=HTTPS") {
		t.Errorf("log:\n%s", log)
	}
	if len(r.refused) != 3 || r.refused[0] != "bad.example HTTPS egress rules" {
		t.Errorf("%q", r.refused)
	}
}

// TestCounted: what processes count is added up, and does not wrap.
func TestCounted(t *testing.T) {
	r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53")
	r.serve()
	for range 2 {
		r.say((&ipc.Counted{Questions: 3, Refused: 1<<64 - 2}).Encode(), -1)
	}
	unix.Shutdown(r.control, unix.SHUT_WR)
	r.end()
	if c := r.Counted(); c.Questions != 6 || c.Refused != 1<<64-1 || c.Cached != 0 {
		t.Errorf("%+v", c)
	}
}

// TestClient: a socket goes to the process with a number that is never zero, and nobody
// waits for a process that takes none.
func TestClient(t *testing.T) {
	r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53")
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r.lastID.Store(1<<32 - 1)
	if err := r.Client(ipc.ProtoTCP, fd, 7); err != nil {
		t.Fatal(err)
	}
	rec, got := r.hear(ipc.NamesKindClient)
	unix.Close(got)
	var c ipc.Client
	if err := c.Decode(rec); err != nil || c.Proto != ipc.ProtoTCP || c.Port != 7 {
		t.Errorf("%+v, %v", c, err)
	}
	for range 100_000 {
		if err = r.Client(ipc.ProtoUDP, fd, 7); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ETOOMANYREFS) {
		t.Errorf("to a process that takes none: %v", err)
	}
	r.SetProcess(away{})
	if err := r.Client(ipc.ProtoUDP, fd, 7); !errors.Is(err, unix.EPIPE) {
		t.Errorf("to none: %v", err)
	}
}
