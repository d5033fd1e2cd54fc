// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/ipc"
)

// totals are the hits of all rules by number, and their sum.
func totals(f *Factory) (hits []uint64, sum uint64) {
	for _, r := range f.Rules() {
		hits = append(hits, r.Hits)
		sum += r.Hits
	}
	return hits, sum
}

// ruleIn is the number of the rule that the steps say has decided, zero if they name
// none.
func ruleIn(e *Explanation) (number int) {
	for _, s := range e.Steps {
		if strings.HasPrefix(s.What, "rule ") && strings.Contains(s.Result, ": fits, and ") {
			_, _ = fmt.Sscanf(s.What, "rule %d", &number)
		}
	}
	return number
}

// aim picks a destination: one that means something, a neighbour of one, or any.
func aim(r *rand.Rand) (proto uint8, dst netip.AddrPort) {
	w := &worlds[r.IntN(len(worlds))]
	named := []string{w.guest, w.gateway, w.own, w.source, w.resolver, w.dns, w.public, w.private, w.meta, w.linkLocal, w.loop, w.multicast,
		w.none, "127.0.0.2", "255.255.255.255", "64:ff9b::192.0.2.3", "64:ff9b::198.51.100.7"}
	a := netip.MustParseAddr(named[r.IntN(len(named))])
	b := a.AsSlice()
	switch r.IntN(4) {
	case 0:
		b[len(b)-1] ^= byte(1 << r.IntN(8))
	case 1:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
	a, _ = netip.AddrFromSlice(b)
	a = a.Unmap()
	proto = []uint8{ipc.ProtoTCP, ipc.ProtoUDP, ipc.ProtoICMP}[r.IntN(3)]
	port := []uint16{0, 1, 53, 80, 853, heardPort, uint16(r.Uint32())}[r.IntN(7)]
	if proto == ipc.ProtoICMP {
		if port = 0; a.Is6() {
			proto = ipc.ProtoICMPv6
		}
	}
	return proto, netip.AddrPortFrom(a, port)
}

// TestExplainDecides: whatever the destination, what is explained is what a worker
// gets that asks for it, and the rule that the steps name is the one that counts it.
// To explain counts nothing.
func TestExplainDecides(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var allowed, refused, byRule int
	for i := range hosts {
		for _, only := range []string{"", "4", "6"} {
			c := hosts[i].config()
			c.Logger = slog.New(slog.DiscardHandler)
			c.V4.Enabled, c.V6.Enabled = only != "6", only != "4"
			f := New(*c)
			f.cfg().Namespace = &nowhere{}
			for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP} {
				f.Adopt(Listener{Proto: proto, Port: heardPort, GuestPort: 5432, Namespace: true, FD: -1})
			}
			for range 2000 {
				proto, dst := aim(r)
				_, before := totals(f)
				e := f.Why(proto, dst)
				hits, after := totals(f)
				if after != before {
					t.Fatalf("%s: to explain %d to %v has counted", hosts[i].name, proto, dst)
				}
				q := request{proto: proto, src: ap(anyOf(dst), 777), dst: dst}
				if l, ok := f.outbound(proto, dst); ok {
					q.splice, q.listener, q.src = true, l, netip.AddrPortFrom(dst.Addr(), 0)
				}
				d := f.cfg().decide(&q)
				f.hits.count(&q, &d)
				last := e.Steps[len(e.Steps)-1]
				if e.Allowed != (d.refused == 0) || last.What != "verdict" || strings.HasPrefix(last.Result, "allowed: ") != e.Allowed {
					t.Fatalf("%s %s: %d to %v: explained as %+v, decided %v", hosts[i].name, only, proto, dst, e, d.refused)
				}
				if e.Allowed && !strings.HasSuffix(last.Result, place(proto, d.to)) {
					t.Fatalf("%s: %d to %v: %q, leads to %v", hosts[i].name, proto, dst, last.Result, d.to)
				}
				now, sum := totals(f)
				n := ruleIn(e)
				if n > 0 && now[n-1] != hits[n-1]+1 {
					t.Fatalf("%s: %d to %v: rule %d has not counted: %+v", hosts[i].name, proto, dst, n, e)
				}
				if counted := d.always != noFamily && d.always != noPort; counted != (sum == before+1) {
					t.Fatalf("%s: %d to %v: %d decisions counted: %+v", hosts[i].name, proto, dst, sum-before, e)
				}
				switch {
				case e.Allowed:
					allowed++
				case n > 0:
					byRule++
				default:
					refused++
				}
			}
		}
	}
	if allowed < 1000 || refused < 1000 || byRule < 1000 {
		t.Errorf("%d allowed, %d refused, %d by rules: not all kinds were met", allowed, refused, byRule)
	}
}

func anyOf(dst netip.AddrPort) string {
	if dst.Addr().Is4() {
		return "0.0.0.0"
	}
	return "::"
}

// nowhere is a namespace of which nobody gets a socket.
type nowhere struct{}

func (*nowhere) Take(uint8, bool) int                               { return -1 }
func (*nowhere) Open(_ ipc.AgentOpen, done func(fd int, err error)) { done(-1, unix.EPERM) }

// TestExplainServed asks a factory at work for what was explained, and looks at what
// the rules have counted.
func TestExplainServed(t *testing.T) {
	w := work(t, egress.Rule{Allow: true, Dest: "udp:127.0.0.1:9"}, egress.Rule{Dest: "127.0.0.0/8"}, egress.Rule{Dest: "::/0"})
	for _, tt := range []struct {
		dst     string
		proto   uint8
		allowed bool
		rule    string // that counts
	}{
		{"192.0.2.77:9", ipc.ProtoUDP, true, "--allow udp:127.0.0.1:9"},
		{"192.0.2.77:10", ipc.ProtoUDP, false, "--deny 127.0.0.0/8"},
		{"192.0.2.77:9", ipc.ProtoTCP, false, "--deny 127.0.0.0/8"},
		{"127.0.0.1:9", ipc.ProtoTCP, false, "--deny 127.0.0.0/8 as the guest names it"},
		{"224.0.0.1:9", ipc.ProtoUDP, false, "--deny 224.0.0.0/4 as the guest names it"},
		{"255.255.255.255:9", ipc.ProtoUDP, false, "--deny 255.255.255.255 as the guest names it"},
		{"0.0.0.0:9", ipc.ProtoTCP, false, "--deny 0.0.0.0 as the guest names it"},
		{"[2001:db8::1]:9", ipc.ProtoTCP, false, "--deny ::/0"},
		{"[::1]:9", ipc.ProtoTCP, false, "--deny ::1 as the guest names it"},
		{"[ff02::1]:9", ipc.ProtoUDP, false, "--deny ff00::/8 as the guest names it"},
	} {
		dst := netip.MustParseAddrPort(tt.dst)
		before := w.Rules()
		if e := w.Why(tt.proto, dst); e.Allowed != tt.allowed {
			t.Errorf("%d to %s: %+v", tt.proto, tt.dst, e)
		}
		o := ipc.Open{Token: 1, Proto: tt.proto, Dst: dst.Addr().As16(), DstPort: dst.Port(), SrcPort: 77,
			Src: netip.MustParseAddr(anyOf(dst)).As16()}
		fd, a := w.request(t, o)
		if fd >= 0 {
			unix.Close(fd)
		}
		if (a.Errno == 0) != tt.allowed {
			t.Errorf("%d to %s: the worker gets %v", tt.proto, tt.dst, unix.Errno(a.Errno))
		}
		var counted []string
		for i, r := range w.Rules() {
			if r.Hits != before[i].Hits {
				counted = append(counted, strings.TrimSpace(r.Text+" "+r.Note))
			}
		}
		if !slices.Equal(counted, []string{tt.rule}) {
			t.Errorf("%d to %s: %q have counted, want %q", tt.proto, tt.dst, counted, tt.rule)
		}
	}
}

// TestExplainBudget: what the budget has no room for is refused, and nothing is spent
// by asking.
func TestExplainBudget(t *testing.T) {
	w, _ := workWithin(t, func(l *budget.Limits) { l.UDP = 2 })
	to := netip.MustParseAddrPort("192.0.2.77:9")
	ask := func(want bool, text string) {
		t.Helper()
		for range 3 {
			e := w.Why(ipc.ProtoUDP, to)
			if i := len(e.Steps) - 2; e.Allowed != want || e.Steps[i].What != "limits" || !strings.HasPrefix(e.Steps[i].Result, text) {
				t.Errorf("%+v, want %v, %q", e, want, text)
			}
		}
	}
	ask(true, "0 of 2 UDP ports: there is room")
	var fds []int
	for i := range 2 {
		o := toLoopback(ipc.ProtoUDP, false, 9)
		o.SrcPort = uint16(30000 + i)
		fd, a := w.request(t, o)
		if fd < 0 {
			t.Fatal(unix.Errno(a.Errno))
		}
		fds = append(fds, fd)
	}
	ask(false, "2 of 2 UDP ports: no more may be")
	if n := w.Usage()[budget.UDP].Refused; n != 0 {
		t.Errorf("%d refusals by asking", n)
	}
	closeAll(fds)
}

// TestDecisionsAllocateNothing: neither to decide nor to count takes memory.
func TestDecisionsAllocateNothing(t *testing.T) {
	c := hosts[4].config()
	f := New(*c)
	q := request{proto: ipc.ProtoTCP, src: ap("192.0.2.2", 777), dst: ap("198.51.100.7", 80)}
	if n := testing.AllocsPerRun(100, func() {
		d := f.cfg().decide(&q)
		f.hits.count(&q, &d)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
