// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// MaxRedirects bounds the redirects of an instance: each new flow is compared with all.
const MaxRedirects = 256

// Redirect has what the guest sends to one place go to another. It says nothing of
// whether that is allowed: the rules judge where it goes then.
type Redirect struct {
	proto       uint8          // protoTCP, protoUDP, 0: both
	from        []netip.Prefix // as the guest names them
	first, last uint16         // ports of from, both zero: all
	to          netip.Addr     // on the host's side, of either family
	port        uint16         // zero: the port stays
	text        string         // FROM=TO as given
	hits        *atomic.Uint64

	At string // FILE:LINE that says so, empty: an option
}

// ParseRedirect reads FROM=TO: [tcp:|udp:]ADDR[/LEN][:PORT[-PORT]]=ADDR[:PORT], with
// "any" for ADDR of FROM. Addresses with ports are written as in a rule.
func ParseRedirect(s string) (r Redirect, err error) {
	from, to, ok := strings.Cut(s, "=")
	if !ok || from == "" || to == "" {
		return r, fmt.Errorf("FROM=TO is needed, as tcp:192.0.2.7:80=198.51.100.8:8080")
	}
	r.text, r.hits = s, new(atomic.Uint64)
	for name, proto := range map[string]uint8{"tcp:": protoTCP, "udp:": protoUDP} {
		if rest, ok := strings.CutPrefix(from, name); ok {
			r.proto, from = proto, rest
		}
	}
	if strings.HasPrefix(from, "icmp:") {
		return r, fmt.Errorf("echo is not redirected: tcp: or udp: can stand there")
	}
	dest, ports, err := cutPorts(from)
	if err != nil {
		return r, err
	}
	if ports != "" {
		if r.first, r.last, err = parsePorts(ports); err != nil {
			return r, err
		}
	}
	if r.from, err = parseFrom(dest); err != nil {
		return r, err
	}
	r.to, r.port, err = parseTo(to)
	return r, err
}

// parseFrom reads an address or prefix that the guest may name.
func parseFrom(s string) ([]netip.Prefix, error) {
	if s == "any" {
		return sets["any"], nil
	}
	p, err := parsePrefix(s)
	if err != nil {
		return nil, fmt.Errorf("%w, nor \"any\"", err)
	}
	switch a := p.Addr(); {
	case p.Bits() < 4 || p.Bits() < 8 && !a.IsMulticast():
	case a.IsLoopback():
		return nil, fmt.Errorf("%s is the guest's own loopback, which nothing leaves: -T and -U forward its ports", s)
	case a.IsMulticast(), a.IsUnspecified() && p.IsSingleIP(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return nil, fmt.Errorf("%s is no address of one host: nothing of it is forwarded", s)
	}
	return []netip.Prefix{p}, nil
}

// parseTo reads where it is to go.
func parseTo(s string) (netip.Addr, uint16, error) {
	var port uint16
	if err := paired(s); err != nil {
		return netip.Addr{}, 0, err
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		ap, e := netip.ParseAddrPort(s)
		if a, port, err = ap.Addr(), ap.Port(), e; e == nil && port == 0 {
			return a, 0, fmt.Errorf("%s: nothing has port 0", s)
		}
	}
	a = a.Unmap()
	switch {
	case err != nil:
		return a, 0, fmt.Errorf("%q is no ADDR[:PORT] to redirect to", s)
	case a.Zone() != "":
		return a, 0, fmt.Errorf("%s: an address with a zone means nothing here", s)
	case a.IsMulticast(), a.IsUnspecified(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, 0, fmt.Errorf("%s is no address of one host", s)
	}
	return a, port, nil
}

// String returns the redirect as an option.
func (r *Redirect) String() string { return "--redirect " + r.text }

// To is where a flow to a port goes.
func (r *Redirect) To(port uint16) netip.AddrPort {
	if r.port != 0 {
		port = r.port
	}
	return netip.AddrPortFrom(r.to, port)
}

// Count notes that a flow was redirected.
func (r *Redirect) Count() { r.hits.Add(1) }

func (r *Redirect) matches(proto uint8, dst netip.AddrPort) bool {
	return (r.proto == 0 || r.proto == proto) && (r.last == 0 || r.first <= dst.Port() && dst.Port() <= r.last) &&
		slices.ContainsFunc(r.from, func(p netip.Prefix) bool { return p.Contains(dst.Addr()) })
}

// Allowed are the rules by which whoever redirects to a place allows it to be used:
// the host's loopback may be one.
func (r *Redirect) Allowed() (rules []Rule) {
	ports := ""
	switch {
	case r.port != 0:
		ports = fmt.Sprintf(":%d", r.port)
	case r.last != 0:
		ports = fmt.Sprintf(":%d-%d", r.first, r.last)
	}
	for proto, name := range map[uint8]string{protoTCP: "tcp:", protoUDP: "udp:"} {
		if r.proto == 0 || r.proto == proto {
			rules = append(rules, Rule{Allow: true, Dest: name + "[" + r.to.String() + "]" + ports, Note: "by " + r.String()})
		}
	}
	slices.SortFunc(rules, func(a, b Rule) int { return strings.Compare(a.Dest, b.Dest) })
	return rules
}

// Redirects are those of an instance, in their order: the first that fits counts.
type Redirects struct{ all atomic.Pointer[[]Redirect] }

// NewRedirects returns them, nil if there are none.
func NewRedirects(all []Redirect) *Redirects {
	if len(all) == 0 {
		return nil
	}
	r := &Redirects{}
	r.Replace(all)
	return r
}

// Replace puts others in their place. It may be called while others ask. One that
// stays keeps what it has counted.
func (r *Redirects) Replace(all []Redirect) {
	all = slices.Clone(all)
	if old := r.all.Load(); old != nil {
		for i := range all {
			if k := slices.IndexFunc(*old, func(o Redirect) bool { return o.text == all[i].text }); k >= 0 {
				all[i].hits = (*old)[k].hits
			}
		}
	}
	r.all.Store(&all)
}

// Find returns the redirect of a flow to a destination, as the guest names it, or
// nil. Echo is not redirected.
func (r *Redirects) Find(proto uint8, dst netip.AddrPort) *Redirect {
	if r == nil || proto != protoTCP && proto != protoUDP {
		return nil
	}
	all := *r.all.Load()
	for i := range all {
		if all[i].matches(proto, dst) {
			return &all[i]
		}
	}
	return nil
}

// List returns them for people to read.
func (r *Redirects) List() (list []Listed) {
	if r == nil {
		return nil
	}
	for i := range *r.all.Load() {
		d := &(*r.all.Load())[i]
		l := Listed{Text: d.String(), Source: ByOption, Note: "before the rules, which judge where it goes", Hits: d.hits.Load()}
		list = append(list, l.SaidAt(d.At))
	}
	return list
}
