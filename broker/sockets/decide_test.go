// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/ipc"
)

// host is what a command line makes of the host, for the table of decisions.
type host struct {
	name             string
	mapped           bool // the gateway is the host's loopback
	splice           bool // listeners take the bypass
	source, device   bool // -o, --outbound-if
	denies           string
	hostDeny, anyDen bool // denies the host, everything
	metadata         bool // denies metadata
}

var hosts = []host{
	{name: "pasta", mapped: true, splice: true},
	{name: "pasta --no-map-gw", splice: true},
	{name: "passt", mapped: true},
	{name: "passt --no-map-gw"},
	{name: "aldente", splice: true, denies: "host metadata", hostDeny: true, metadata: true},
	{name: "aldente --map-host-loopback", mapped: true, splice: true, denies: "host metadata", hostDeny: true, metadata: true},
	{name: "pasta --deny any", mapped: true, splice: true, denies: "any", hostDeny: true, anyDen: true, metadata: true},
	{name: "passt --deny host", mapped: true, denies: "host", hostDeny: true},
	{name: "pasta --deny metadata -o --outbound-if", mapped: true, splice: true, source: true, device: true, denies: "metadata", metadata: true},
	{name: "aldente -o", splice: true, source: true, denies: "host metadata", hostDeny: true, metadata: true},
	{name: "passt --outbound-if", mapped: true, device: true},
}

// world is one family's addresses, by class.
type world struct {
	v4                                            bool
	guest, gateway, own, source, resolver, dns    string
	public, private, meta, linkLocal, loop, loop2 string
	multicast, none                               string
	embedded                                      string // that stands for the other family's own
}

var worlds = []world{
	{v4: true, guest: "192.0.2.2", gateway: "192.0.2.1", own: "192.0.2.3", source: "192.0.2.4", resolver: "127.0.0.53", dns: "169.254.1.1",
		public: "198.51.100.7", private: "10.1.2.3", meta: "169.254.169.254", linkLocal: "169.254.7.7", loop: "127.0.0.1", loop2: "127.0.0.2",
		multicast: "224.0.0.251", none: "0.0.0.0"},
	{guest: "2001:db8::2", gateway: "2001:db8::1", own: "2001:db8::3", source: "2001:db8::4", resolver: "fd00::53", dns: "fd61:6c64:656e:7465::53",
		public: "2001:db8:9::7", private: "fd00::7", meta: "fd00:ec2::254", linkLocal: "fe80::7", loop: "::1",
		multicast: "ff02::fb", none: "::", embedded: "64:ff9b::192.0.2.3"},
}

const (
	clientPort    = 40000 // that the kernel gives
	servicePort   = 53
	connectedPort = 123 // of a socket that is connected to the listener's
	heardPort     = 5353
)

func (h *host) config() *Config {
	c := &Config{ClientPorts: PortRange{32768, 60999}, LoToLo: true}
	var rules []egress.Rule
	var deny string
	for _, r := range []string{"host", "metadata", "any"} {
		if len(h.denies) > 0 && (h.denies == r || h.denies == "host metadata" && r != "any") {
			rules = append(rules, egress.Rule{Dest: r})
			deny = r
		}
	}
	for i, f := range []*Family{&c.V4, &c.V6} {
		w := &worlds[i]
		*f = Family{Enabled: true, Scope: 3, DNSForward: netip.MustParseAddr(w.dns), DNSHost: netip.MustParseAddr(w.resolver)}
		if h.mapped {
			f.MapHostLoopback = netip.MustParseAddr(w.gateway)
		}
		if h.source {
			f.Source = netip.MustParseAddr(w.source)
		}
		if h.device {
			f.Interface = "out0"
		}
	}
	if deny != "" {
		var own []netip.Addr
		for i := range worlds {
			own = append(own, netip.MustParseAddr(worlds[i].own), netip.MustParseAddr(worlds[i].source))
		}
		p, err := egress.New(rules, own)
		if err != nil {
			panic(err)
		}
		var pins []netip.Addr
		for i := range worlds {
			pins = append(pins, netip.MustParseAddr(worlds[i].resolver))
		}
		p.Pin(pins...)
		c.Egress = p
	}
	c.Client = func(peer, local netip.AddrPort) bool {
		return peer.Port() == connectedPort && local.Port() == heardPort
	}
	return c
}

// TestDecideOut states, class by class, where a flow of the guest's goes.
func TestDecideOut(t *testing.T) {
	n := 0
	for i := range hosts {
		h := &hosts[i]
		c := h.config()
		for j := range worlds {
			w := &worlds[j]
			// By destination: where it leads, or "" if it is nobody's to name;
			// and whether the egress rules refuse.
			type place struct {
				to      string
				refused bool
			}
			gateway := place{w.gateway, h.anyDen}
			if h.mapped {
				gateway = place{w.loop, h.hostDeny}
			}
			for dst, p := range map[string]place{
				w.public: {w.public, h.anyDen}, w.private: {w.private, h.anyDen}, w.linkLocal: {w.linkLocal, h.anyDen},
				w.own: {w.own, h.hostDeny}, w.meta: {w.meta, h.metadata}, w.gateway: gateway, w.embedded: {w.embedded, h.hostDeny},
				w.loop: {}, w.loop2: {}, w.none: {}, w.multicast: {}, "255.255.255.255": {}, w.dns: {w.dns, h.anyDen},
			} {
				if dst == "" || netip.MustParseAddr(dst).Is4() != w.v4 {
					continue
				}
				for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP, ipc.ProtoICMP, ipc.ProtoICMPv6} {
					for _, port := range []uint16{80, 53, 853, 0} {
						echo := proto == ipc.ProtoICMP || proto == ipc.ProtoICMPv6
						if echo != (port == 0) && port != 0 {
							continue
						}
						want := p
						switch {
						case dst == w.dns && (port == 53 || port == 853):
							want = place{w.resolver, false} // by the pin
						case port == 0 && !echo:
							want = place{}
						}
						n++
						d := c.decide(&request{proto: proto, src: ap(w.guest, 777), dst: ap(dst, port)})
						checkDecision(t, fmt.Sprintf("%s: %d to %s:%d", h.name, proto, dst, port), d, want.to, want.refused)
						if d.refused == 0 {
							loop := d.to.Addr().IsLoopback()
							checkPath(t, h, w, d, loop, ap(fromOf(h, w, loop), 777))
						}
					}
				}
			}
			// Families are not mixed, and one that is off is off.
			other := &worlds[1-j]
			if d := c.decide(&request{proto: ipc.ProtoTCP, src: ap(other.guest, 777), dst: ap(w.public, 80)}); d.refused != unix.EAFNOSUPPORT {
				t.Errorf("%s: families mixed: %v", h.name, d.refused)
			}
			off := *c
			off.family(netip.MustParseAddr(w.public)).Enabled = false
			if d := off.decide(&request{proto: ipc.ProtoTCP, src: ap(w.guest, 777), dst: ap(w.public, 80)}); d.refused != unix.EAFNOSUPPORT {
				t.Errorf("%s: family off: %v", h.name, d.refused)
			}
		}
	}
	t.Logf("%d decisions", n)
}

// TestDecideVirtual: in a network that is the guest's own, addresses lead where they have a
// meaning and nowhere else, whatever the rules say; others are as ever.
func TestDecideVirtual(t *testing.T) {
	for i := range worlds {
		w := &worlds[i]
		c := hosts[0].config()
		f := c.family(netip.MustParseAddr(w.guest))
		f.Virtual, _ = netip.MustParseAddr(w.guest).Prefix(map[bool]int{true: 24, false: 64}[w.v4])
		f.DNSForward = netip.MustParseAddr(w.source)
		for dst, want := range map[string]string{w.own: "", w.guest: "", w.source: "", w.gateway: w.loop, w.public: w.public} {
			d := c.decide(&request{proto: ipc.ProtoTCP, src: ap(w.guest, 777), dst: ap(dst, 80)})
			checkDecision(t, dst, d, want, false)
			if want == "" && d.always != isVirtual {
				t.Errorf("%s: %v", dst, d.always)
			}
		}
		d := c.decide(&request{proto: ipc.ProtoUDP, src: ap(w.guest, 777), dst: ap(w.source, 53)})
		checkDecision(t, "resolver", d, w.resolver, false)
	}
}

func ap(a string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(a), port)
}

func fromOf(h *host, w *world, loop bool) string {
	if h.source && !loop {
		return w.source
	}
	return w.none
}

// checkDecision compares with where it leads, "" if nowhere, and whether it is the
// egress rules that refuse.
func checkDecision(t *testing.T, what string, d decision, to string, byRules bool) {
	t.Helper()
	switch {
	case to == "":
		if d.refused != unix.EACCES || d.byRules {
			t.Errorf("%s: %v, by the rules: %v; nobody may name it", what, d.refused, d.byRules)
		}
	case byRules:
		if d.refused != unix.EACCES || !d.byRules || d.verdict.Rule == "" {
			t.Errorf("%s: %v, by the rules: %v (%s); it has to refuse", what, d.refused, d.byRules, d.verdict.Rule)
		}
	default:
		if d.refused != 0 || d.to.Addr() != netip.MustParseAddr(to) {
			t.Errorf("%s: %v to %v (%s), want %s", what, d.refused, d.to, d.verdict.Rule, to)
		}
	}
}

func checkPath(t *testing.T, h *host, w *world, d decision, loop bool, from netip.AddrPort) {
	t.Helper()
	device := ""
	if h.device && !loop {
		device = "out0"
	}
	if d.Interface != device || d.from != from || d.Scope != 3 || d.namespace {
		t.Errorf("%s: to %v by %q from %v, scope %d; want %q, %v", h.name, d.to, d.Interface, d.from, d.Scope, device, from)
	}
}

// TestDecideReply states it for answers of UDP listeners: with every kind of
// listener, peer, and address that was spoken to.
func TestDecideReply(t *testing.T) {
	n := 0
	for i := range hosts {
		h := &hosts[i]
		c := h.config()
		for j := range worlds {
			w := &worlds[j]
			for _, l := range []Listener{{}, {Addr: netip.MustParseAddr(w.own)}, {Interface: "in0"}, {Interface: "lo"}} {
				l.ID, l.Proto, l.Port, l.GuestPort, l.Splice = 1, ipc.ProtoUDP, heardPort, heardPort, h.splice
				for peer, class := range map[string]string{w.public: "world", w.private: "world", w.linkLocal: "world", w.own: "own",
					w.loop: "loop", w.loop2: "loop2", w.meta: "meta", w.none: "", w.multicast: "", "255.255.255.255": "", w.embedded: "embedded"} {
					if peer == "" || netip.MustParseAddr(peer).Is4() != w.v4 {
						continue
					}
					for _, port := range []uint16{clientPort, servicePort, connectedPort} {
						for _, local := range []string{w.none, w.own, w.source} {
							if l.Addr.IsValid() && local != w.own {
								continue
							}
							n++
							d := c.decide(&request{proto: ipc.ProtoUDP, listener: l, src: ap(local, heardPort), dst: ap(peer, port)})
							what := fmt.Sprintf("%s: from %s (listener %v%%%s) to %s:%d", h.name, local, l.Addr, l.Interface, peer, port)
							to, byRules := replyModel(h, w, &l, class, peer, local, port)
							checkDecision(t, what, d, to, byRules)
							if d.refused != 0 {
								continue
							}
							from, device := local, l.Interface
							loop := class == "loop" || class == "loop2"
							if h.source && !l.Addr.IsValid() && !loop {
								from = w.source
							}
							if h.device && device == "" && !loop {
								device = "out0"
							}
							if d.Interface != device || d.from != ap(from, heardPort) || d.namespace {
								t.Errorf("%s: from %v by %q, want %s, %q", what, d.from, d.Interface, from, device)
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d decisions", n)
}

// replyModel says it in the words of SECURITY.md.
func replyModel(h *host, w *world, l *Listener, class, peer, local string, port uint16) (to string, byRules bool) {
	loop := class == "loop" || class == "loop2"
	client := port == connectedPort && (local != w.none || h.source && !l.Addr.IsValid() && !loop)
	switch {
	case class == "":
		return "", false
	case loop && l.Interface == "in0":
		return "", false
	case h.source && !loop && !l.Addr.IsValid() && local != w.none && local != w.source:
		return "", false
	case client:
		return peer, false
	case h.anyDen, h.hostDeny && (loop || class == "own" || class == "embedded"), h.metadata && class == "meta":
		return peer, true
	case loop && port == clientPort, class == "loop" && h.mapped:
		return peer, false
	case loop:
		return "", false
	}
	return peer, false
}

// TestDecideBypass: the far end is where the rule says, on the other side.
func TestDecideBypass(t *testing.T) {
	for i := range hosts {
		h := &hosts[i]
		for _, lo := range []bool{true, false} {
			c := h.config()
			c.LoToLo = lo
			for j := range worlds {
				w := &worlds[j]
				for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP} {
					for _, l := range []Listener{{Splice: h.splice}, {Namespace: true}, {Namespace: true, Target: netip.MustParseAddr(w.own)}} {
						l.ID, l.Proto, l.Port, l.GuestPort = 1, proto, heardPort, 8080
						for _, addr := range []string{w.guest, w.loop, w.loop2, w.none, w.multicast, w.public} {
							for _, peer := range []string{w.loop, w.public} {
								if addr == "" {
									continue
								}
								d := c.decide(&request{proto: proto, splice: true, listener: l, src: ap(addr, 0), dst: ap(peer, 999)})
								what := fmt.Sprintf("%s: %+v, %s for %s", h.name, l, addr, peer)
								loop := addr == w.loop || addr == w.loop2
								to := addr
								if l.Namespace && l.Target.IsValid() {
									to = w.own
								}
								switch {
								case peer != w.loop || !l.Namespace && !h.splice:
									if d.refused != unix.EINVAL {
										t.Errorf("%s: %v", what, d.refused)
									}
									continue
								case l.Namespace && to == w.own:
									checkDecision(t, what, d, to, h.hostDeny)
								case l.Namespace && !loop, !l.Namespace && loop && !lo, addr == w.none, addr == w.multicast:
									checkDecision(t, what, d, "", false)
								case l.Namespace:
									checkDecision(t, what, d, to, h.hostDeny)
								default:
									checkDecision(t, what, d, to, false)
								}
								if d.refused == 0 && (d.to.Port() != 8080 || d.namespace == l.Namespace || d.from.Port() != 999 || d.path != (path{})) {
									t.Errorf("%s: %+v", what, d)
								}
							}
						}
					}
				}
			}
		}
	}
}
