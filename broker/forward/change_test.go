// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/plan"
	"aldente/ipc"
)

// parsed makes rules of specifications, "-t 80 -u 53", as they are on a command line.
func parsed(t *testing.T, specs string) (r plan.Rules) {
	t.Helper()
	words := strings.Fields(specs)
	for i := 0; i < len(words); i += 2 {
		o := cli.SpecOptions{Proto: ipc.ProtoTCP, Auto: true, Outbound: strings.ToUpper(words[i]) == words[i]}
		if strings.ToLower(words[i]) == "-u" {
			o.Proto = ipc.ProtoUDP
		}
		rules, err := cli.ParseSpec(words[i+1], o)
		if err != nil {
			t.Fatal(err)
		}
		if o.Outbound {
			r.Outbound = append(r.Outbound, rules...)
		} else {
			r.Inbound = append(r.Inbound, rules...)
		}
	}
	return r
}

// live starts a forwarder that -c lets change, with a worker that hears of it.
func live(t *testing.T, h *host, command string) *Forwarder {
	t.Helper()
	if h.opens == nil {
		h.opens = func(ipc.AgentOpen) (int, error) { return descriptor(t), nil }
	}
	f := forwarder(t, h, command)
	if err := f.Listen(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(command, "passt") {
		if err := f.Enter(h); err != nil {
			t.Fatal(err)
		}
	}
	f.up = true
	return f
}

// ids are the identifiers of listeners by where they listen.
func (h *host) ids() map[string]uint32 {
	all := map[string]uint32{}
	for _, l := range h.listeners {
		all[fmt.Sprint(l.Namespace, l.Proto, l.Addr, l.Interface, l.Port, l.GuestPort, l.Target)] = l.ID
	}
	return all
}

// TestChange: what changes of listeners, rule by rule; what stays is not touched, and
// the worker hears of new ones before old ones go.
func TestChange(t *testing.T) {
	for _, tt := range []struct {
		name, command, to string
		open, told        string
		beside            []uint16
	}{
		{name: "nothing", command: "pasta -t 80 -u 53 -T 90 -U none", to: "-t 80 -u 53 -T 90", open: "ns:tcp:90 tcp:80 udp:53"},
		{name: "another order", command: "passt -t 80 -t 81", to: "-t 81 -t 80", open: "tcp:80 tcp:81"},
		{name: "one more", command: "passt -t 80", to: "-t 80 -t 81-82 -u 53", open: "tcp:80 tcp:81 tcp:82 udp:53", told: "+81 +82 +53"},
		{name: "one less", command: "passt -t 80 -t 81-82", to: "-t 80", open: "tcp:80", told: "-81 -82"},
		{name: "all go", command: "passt -t 80 -u 53", to: "", open: "", told: "-80 -53"},
		{name: "another target", command: "passt -t 80:90", to: "-t 80:91", open: "tcp:80", told: ">80"},
		{name: "a range that grows", command: "passt -t 80-81", to: "-t 80-82", open: "tcp:80 tcp:81 tcp:82", told: "+82"},
		{name: "a range that shrinks", command: "passt -u 80-82", to: "-u 81", open: "udp:81", told: "-80 -82"},
		{name: "narrower", command: "passt -t 80", to: "-t 127.0.0.1/80", open: "tcp:80", told: "+80 -80", beside: []uint16{80}},
		{name: "an interface", command: "passt -u 53", to: "-u %eth0/53", open: "udp:53", told: "+53 -53", beside: []uint16{53}},
		{name: "split", command: "passt -t 80", to: "-t 127.0.0.1/80 -t ::1/80", open: "tcp:80 tcp:80", told: "+80 +80 -80", beside: []uint16{80, 80}},
		{name: "another protocol", command: "passt -t 80", to: "-u 80", open: "udp:80", told: "+80 -80"},
		{name: "outbound", command: "pasta -t none -u none -T 90 -U none", to: "-T 90:91 -U 92", open: "ns:tcp:90 ns:udp:92", told: ">90 +92"},
		{name: "outbound, a range that moves", command: "pasta -t none -u none -T 90-91 -U none", to: "-T 91-92", open: "ns:tcp:91 ns:tcp:92", told: "+92 -90"},
		{name: "the other way", command: "pasta -t 80 -u none -T none -U none", to: "-T 80", open: "ns:tcp:80", told: "+80 -80"},
	} {
		h := &host{}
		f := live(t, h, tt.command+" -c x")
		before := h.ids()
		h.told = nil
		if err := f.Change(parsed(t, tt.to)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if h.open() != tt.open || strings.Join(h.told, " ") != tt.told {
			t.Errorf("%s: listens on %q, the worker hears %q; want %q, %q", tt.name, h.open(), strings.Join(h.told, " "), tt.open, tt.told)
		}
		if !slices.Equal(h.beside, tt.beside) {
			t.Errorf("%s: beside %v; want %v", tt.name, h.beside, tt.beside)
		}
		for where, id := range h.ids() {
			if old, ok := before[where]; ok && old != id {
				t.Errorf("%s: %s is another listener now", tt.name, where)
			}
		}
		got, want := f.Rules(), parsed(t, tt.to)
		if !slices.Equal(got.Inbound, want.Inbound) || !slices.Equal(got.Outbound, want.Outbound) {
			t.Errorf("%s: rules are %+v, want %+v", tt.name, got, want)
		}
	}
}

// TestChangeFails: an error names the rule, and all is as it was.
func TestChangeFails(t *testing.T) {
	taken := func(ipc.AgentOpen) (int, error) { return -1, unix.EADDRINUSE }
	for _, tt := range []struct {
		name, command, to string
		opens             func(ipc.AgentOpen) (int, error)
		err               string
	}{
		{"a port of somebody's", "pasta -t 80 -u 53 -T none -U none", "-t 80 -t 8000 -t 99", nil, "for rule TCP [*]:99"},
		{"amid a range", "passt -t 80", "-t 90-110", nil, "for rule TCP [*]:90-110"},
		{"after others lead elsewhere", "passt -t 80 -t 97-98:1-2", "-t 97-99:3-5", nil, "for rule TCP [*]:97-99"},
		{"in the namespace", "pasta -t 80 -u none -T none -U none", "-t 80 -T 90", taken, "for rule TCP [*]%lo:90"},
		{"no port at all", "passt -t 80", "-t 80 -t ~1-98,~100-65535", nil, "no port could be bound for rule TCP [*]:99"},
		{"overlap", "passt -t 80", "-t 80-90 -t 85", nil, "conflict: TCP [*]:85"},
		{"auto for machines", "passt -t 80", "-t 80 -u 90,auto", nil, "'auto' port forwarding"},
		{"outbound for machines", "passt -t 80", "-t 80 -T 90", nil, "no namespace"},
		{"no IPv6", "passt -t 80", "-t 80 -t ::1/90", nil, "IPv6 not enabled: TCP [::1]:90"},
		{"no UDP", "passt --no-udp -t 80", "-t 80 -u 90", nil, "protocol disabled: UDP [*]:90"},
		{"target of another family", "passt -t 80", "-t 80 -t 127.0.0.1/90:[::2]/90", nil, ""},
	} {
		h := &host{busy: map[uint16]error{}, opens: tt.opens}
		f := live(t, h, tt.command+" -4 -c x")
		h.busy[99] = unix.EACCES
		open, ids := h.open(), h.ids()
		before := f.Rules()
		h.told = nil
		var to plan.Rules
		if tt.err == "" {
			to = before
			to.Inbound = append(slices.Clone(before.Inbound), cli.Rule{Proto: ipc.ProtoTCP, Addr: netip.MustParseAddr("127.0.0.1"),
				PortRange: cli.PortRange{First: 90, Last: 90}, TargetAddr: netip.MustParseAddr("::2"), TargetPort: 90})
			tt.err = "Forward from IPv4"
		} else {
			to = parsed(t, tt.to)
		}
		err := f.Change(to)
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "[0.0.0.0]", "[*]"), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
		if h.open() != open || fmt.Sprint(h.ids()) != fmt.Sprint(ids) || len(h.told) > 0 {
			t.Errorf("%s: listens on %q, before %q; the worker hears %v", tt.name, h.open(), open, h.told)
		}
		if after := f.Rules(); !slices.Equal(after.Inbound, before.Inbound) || !slices.Equal(after.Outbound, before.Outbound) {
			t.Errorf("%s: rules are %+v", tt.name, after)
		}
	}
}

// TestChangeDescriptors: descriptors of a change that fails are closed, those of
// one that does not are the factory's.
func TestChangeDescriptors(t *testing.T) {
	var given []int
	fail := false
	h := &host{opens: func(ipc.AgentOpen) (int, error) {
		if fail && len(given) == 3 {
			return -1, unix.EMFILE
		}
		given = append(given, descriptor(t))
		return given[len(given)-1], nil
	}}
	f := live(t, h, "pasta -t none -u none -T none -U none -c x")
	fail = true
	if err := f.Change(parsed(t, "-T 80-85")); !errors.Is(err, unix.EMFILE) {
		t.Errorf("%v", err)
	}
	for _, fd := range given {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			t.Errorf("descriptor %d is left open", fd)
		}
	}
	given, fail = nil, false
	if err := f.Change(parsed(t, "-T 80-85")); err != nil || len(h.listeners) != 6 {
		t.Errorf("%v, %d listeners", err, len(h.listeners))
	}
	for _, fd := range given {
		if err := unix.Close(fd); err != nil {
			t.Errorf("descriptor %d: %v", fd, err)
		}
	}
}

// TestChangeAuto: rules with "auto" come and go while running, and nothing is scanned
// without one.
func TestChangeAuto(t *testing.T) {
	h := &host{bound: map[uint8][]uint16{ipc.ProtoTCP: {8080}}}
	f := live(t, h, "pasta -t none -u none -T none -U none -c x")
	if f.auto == nil || f.auto.running {
		t.Error("scans without a rule, or could not later")
	}
	if err := f.Change(parsed(t, "-t auto")); err != nil || h.open() != "tcp:8080" || !f.auto.running {
		t.Errorf("%v, listens on %q", err, h.open())
	}
	id := h.listeners[0].ID
	if err := f.Change(parsed(t, "-t 8080:80")); err != nil || h.open() != "tcp:8080" || h.listeners[0].ID != id || h.listeners[0].GuestPort != 80 {
		t.Errorf("%v, listens on %q, %+v", err, h.open(), h.listeners)
	}
	if f.auto.again(); f.auto.running {
		t.Error("scans on without a rule")
	}
	if err := f.Change(parsed(t, "-t 8000-8100,auto -T 8080")); err != nil || h.open() != "ns:tcp:8080" {
		t.Errorf("%v, listens on %q", err, h.open()) // our own listener there is no target
	}
	if err := f.Change(plan.Rules{}); err != nil || h.open() != "" {
		t.Errorf("%v, listens on %q", err, h.open())
	}
}

// TestUDPAgainInNamespace: a UDP port that was listened on before is asked for beside
// the flows that it has left.
func TestUDPAgainInNamespace(t *testing.T) {
	var flags []uint8
	h := &host{opens: func(o ipc.AgentOpen) (int, error) {
		flags = append(flags, o.Flags&ipc.AgentOpenBeside)
		if err := new(ipc.AgentOpen).Decode(o.Encode()); err != nil {
			t.Error(err)
		}
		return descriptor(t), nil
	}}
	f := live(t, h, "pasta -t none -u none -T none -U 53 -c x")
	for _, to := range []string{"", "-U 53", "-U 53 -U 54 -T 53"} {
		if err := f.Change(parsed(t, to)); err != nil {
			t.Fatal(err)
		}
	}
	if want := []uint8{0, ipc.AgentOpenBeside, 0, 0}; !slices.Equal(flags, want) {
		t.Errorf("asked with %v, want %v", flags, want)
	}
}

// TestRebind: a listener whose interface is another now is bound anew, and the worker
// hears of the new socket; one whose interface is away waits, and is told once.
func TestRebind(t *testing.T) {
	h := &host{busy: map[uint16]error{}}
	f := live(t, h, "passt -t %eth0/80 -t 81 -u %eth1/53 -4 -c x")
	h.told = nil
	f.Rebind()
	if len(h.told) > 0 {
		t.Errorf("nothing has changed, and the worker hears %q", h.told)
	}
	h.strayed, h.busy[80] = map[uint16]bool{80: true, 53: true}, unix.ENODEV
	f.Rebind()
	f.Rebind()
	if got := strings.Join(h.told, " "); got != "-53 +53" || !h.strayed[80] {
		t.Errorf("the worker hears %q", got)
	}
	if s := f.States(); s[0].Listens != 0 || s[1].Listens != 1 {
		t.Errorf("states: %+v", s)
	}
	h.told = nil
	delete(h.busy, 80)
	f.Rebind()
	if got := strings.Join(h.told, " "); got != "-80 +80" || f.States()[0].Listens != 1 {
		t.Errorf("the worker hears %q, states %+v", got, f.States())
	}
}

// TestRebindMany: of many ports on an interface that is away one is tried, and one line
// tells of all.
func TestRebindMany(t *testing.T) {
	h := &host{busy: map[uint16]error{}}
	f := live(t, h, "passt -t %eth0/80-179 -u %eth0/280-379 -4 -c x")
	var lines bytes.Buffer
	f.log = slog.New(slog.NewTextHandler(&lines, nil))
	h.strayed = map[uint16]bool{}
	for p := uint16(80); p < 180; p++ {
		h.strayed[p], h.busy[p] = true, fmt.Errorf("cannot listen: %w", unix.ENODEV)
		h.strayed[p+200], h.busy[p+200] = h.strayed[p], h.busy[p]
	}
	f.Rebind()
	f.Rebind()
	if n := strings.Count(lines.String(), "\n"); n != 1 || !strings.Contains(lines.String(), "ports=200") || h.rebinds != 2 {
		t.Errorf("%d ports were tried, and the log says %s", h.rebinds, lines.String())
	}
	lines.Reset()
	clear(h.busy)
	f.Rebind()
	if n := strings.Count(lines.String(), "\n"); n != 1 || !strings.Contains(lines.String(), "ports=200") || f.States()[0].Listens != 100 {
		t.Errorf("the log says %s", lines.String())
	}
}
