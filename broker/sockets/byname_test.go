// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/ipc"
	"aldente/ipc/domain"
)

// namedRules are what a build may have that is to reach two names, under aldente's
// defaults.
var namedRules = []egress.Rule{
	{Dest: "udp:dns.test"}, {Allow: true, Dest: "tcp:pypi.test:443"}, {Allow: true, Dest: "*.cdn.test"},
	{Dest: "host", Guard: true}, {Dest: "metadata", Guard: true}, {Dest: "private", Guard: true}, {Dest: "any"},
}

// grantAll has names lead where an honest resolver, and one that lies, would say.
func grantAll(t *testing.T, e *egress.RuleSet) {
	t.Helper()
	for name, addrs := range map[domain.Name]string{
		"pypi.test": "198.51.100.7 2001:db8::7 64:ff9b::198.51.100.7", "a.cdn.test": "198.51.100.9",
		"evil.cdn.test": "127.0.0.1 ::1 192.0.2.77 10.0.0.1 169.254.169.254 ::ffff:10.0.0.1 64:ff9b::10.0.0.1 2002:a00:1::1 fd00:ec2::254 224.0.0.251 0.0.0.0",
		"evil.test":     "203.0.113.1",
	} {
		var all []netip.Addr
		for a := range strings.FieldsSeq(addrs) {
			all = append(all, netip.MustParseAddr(a))
		}
		e.Grant(name, nil, all, time.Now().Add(time.Hour))
	}
}

// TestCapturedWorkerAsksByName tries every way of asking for a socket that the rules by
// name do not let the guest have, with names that lead inside. What the guest may have is
// only decided on, since nothing here is to leave the host.
func TestCapturedWorkerAsksByName(t *testing.T) {
	w := work(t, namedRules...)
	grantAll(t, w.cfg().Egress.(*egress.RuleSet))
	w.cfg().V4.MapGuestAddr, w.cfg().V4.GuestAddr = netip.MustParseAddr("192.0.2.80"), netip.MustParseAddr("198.51.100.7")
	w.cfg().VerifySNI = []PortRange{{8443, 8443}}
	heard := w.udpListener(t, "0.0.0.0")
	out := w.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 8443, GuestPort: 443, Namespace: true, Target: netip.MustParseAddr("198.51.100.7"), FD: -1})
	to := func(proto uint8, dst string, port uint16) ipc.Open {
		o := ipc.Open{Proto: proto, Src: as16("10.0.0.2"), SrcPort: 4000, Dst: as16(dst), DstPort: port}
		if a := netip.MustParseAddr(dst); a.Is6() && !a.Is4In6() {
			o.Src = as16("2001:db8::2")
		}
		return o
	}
	by := func(o ipc.Open, l Listener, flags uint8) ipc.Open {
		o.Listener, o.Flags, o.SrcPort = l.ID, flags, l.Port
		return o
	}
	bypass := ipc.Open{Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: out.ID, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1"), DstPort: 5000}
	for name, o := range map[string]ipc.Open{
		"another port":                        to(ipc.ProtoTCP, "198.51.100.7", 80),
		"another port, IPv6":                  to(ipc.ProtoTCP, "2001:db8::7", 444),
		"another protocol":                    to(ipc.ProtoUDP, "198.51.100.7", 443),
		"echo":                                to(ipc.ProtoICMP, "198.51.100.7", 0),
		"echo, IPv6":                          to(ipc.ProtoICMPv6, "2001:db8::7", 0),
		"a neighbour":                         to(ipc.ProtoTCP, "198.51.100.8", 443),
		"a name that is refused":              to(ipc.ProtoTCP, "203.0.113.1", 443),
		"behind the translator":               to(ipc.ProtoTCP, "64:ff9b::198.51.100.8", 443),
		"the same, compatible":                to(ipc.ProtoTCP, "::198.51.100.7", 443),
		"the same by 6to4":                    to(ipc.ProtoTCP, "2002:c633:6407::1", 443),
		"loopback by its other name":          to(ipc.ProtoTCP, "192.0.2.77", 443),
		"private":                             to(ipc.ProtoTCP, "10.0.0.1", 443),
		"private, mapped":                     to(ipc.ProtoTCP, "::ffff:10.0.0.1", 443),
		"private behind NAT64":                to(ipc.ProtoTCP, "64:ff9b::10.0.0.1", 443),
		"private by 6to4":                     to(ipc.ProtoTCP, "2002:a00:1::1", 443),
		"metadata":                            to(ipc.ProtoTCP, "169.254.169.254", 80),
		"metadata, IPv6":                      to(ipc.ProtoTCP, "fd00:ec2::254", 80),
		"by the guest's address's other name": to(ipc.ProtoTCP, "192.0.2.80", 443),
		"a resolver":                          to(ipc.ProtoUDP, "9.9.9.9", 53),
		"answer to a neighbour":               by(to(ipc.ProtoUDP, "198.51.100.8", 53), heard, 0),
		"answer to who is named for TCP":      by(to(ipc.ProtoUDP, "198.51.100.7", 443), heard, 0),
		"answer past who looks":               by(to(ipc.ProtoUDP, "198.51.100.9", 8443), heard, 0),
		"past the link":                       bypass,
	} {
		if _, err := unix.Write(w.worker, encode(o)); err != nil {
			t.Fatal(err)
		}
		var a ipc.Opened
		buf := make([]byte, ipc.MaxRecord)
		n, fd, err := ipc.Receive(w.worker, buf, 0)
		if err == nil {
			err = a.Decode(buf[:n])
		}
		if err != nil || fd >= 0 || a.Errno == 0 || a.Flags&ipc.OpenedProhibited == 0 {
			t.Errorf("%s: %+v, descriptor %d, %v", name, a, fd, err)
		}
	}
	for dst, port := range map[string]uint16{"198.51.100.7": 443, "::ffff:198.51.100.7": 443, "2001:db8::7": 443, "64:ff9b::198.51.100.7": 443, "198.51.100.9": 1} {
		o := to(ipc.ProtoTCP, dst, port)
		d := w.cfg().decide(&request{proto: o.Proto, src: netip.AddrPortFrom(netip.AddrFrom16(o.Src).Unmap(), 1), dst: netip.AddrPortFrom(netip.AddrFrom16(o.Dst).Unmap(), port)})
		if d.refused != 0 || !d.verdict.ByName || d.verdict.Name == "" {
			t.Errorf("%s: %+v", dst, d)
		}
	}
}

// remembering is a rule set that allows all by name, and remembers what it was asked.
type remembering struct {
	mu    sync.Mutex
	flows []egress.Flow
	deny  bool
}

func (p *remembering) Judge(f egress.Flow) egress.Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows = append(p.flows, f)
	return egress.Verdict{Allowed: !p.deny, Rule: "--allow pypi.test", Name: "pypi.test", ByName: true}
}

func (p *remembering) Explain(f egress.Flow) (egress.Verdict, []egress.Asked) { return p.Judge(f), nil }

func (p *remembering) List() []egress.Listed { return nil }

func (p *remembering) last() egress.Flow {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flows[len(p.flows)-1]
}

// TestOpenByName: a flow that is open is judged by the name that it was opened by, as long
// as it is open; the log says it; what lists flows does not mind the time.
func TestOpenByName(t *testing.T) {
	p := &remembering{}
	w, log := workUnder(t, p, func(*budget.Limits) {})
	fd, answer := w.request(t, toLoopback(ipc.ProtoUDP, false, 9))
	if fd < 0 {
		t.Fatal(answer)
	}
	defer unix.Close(fd)
	if f := p.last(); f.Open || f.Name != "" || f.Past || !f.Mapped {
		t.Errorf("when it was opened: %+v", f)
	}
	if told, left, _ := w.recheck(); len(told) != 0 || left != 0 {
		t.Errorf("told %v, %d left", told, left)
	}
	if f := p.last(); !f.Open || f.Name != "pypi.test" || f.Past {
		t.Errorf("once it is open: %+v", f)
	}
	shown := ipc.Flow{Proto: ipc.ProtoUDP, Direction: ipc.FlowOut, Guest: as16("10.0.0.1"), GuestPort: 1, Remote: as16("192.0.2.9"), RemotePort: 9}
	if rule := w.FlowRule(&shown); rule != "--allow pypi.test" {
		t.Errorf("shown by %q", rule)
	}
	if f := p.last(); !f.Past || f.Open || f.Mapped {
		t.Errorf("to show it: %+v", f)
	}
	p.mu.Lock()
	p.deny = true
	p.mu.Unlock()
	if told, left, _ := w.recheck(); len(told) != 1 || left != 1 {
		t.Errorf("denied: told %v, %d left", told, left)
	}
	if s := log.String(); !strings.Contains(s, "to=127.0.0.1:9 name=pypi.test rule=") {
		t.Errorf("the log has no name:\n%s", s)
	}
}
