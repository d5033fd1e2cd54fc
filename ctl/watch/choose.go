// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Orders are the names of orders that Sort knows, the usual one first.
var Orders = []string{"rate", "sent", "received", "age", "idle", "rtt", "retransmits", "queued", "protocol", "state", "guest", "remote", "rule"}

// compare has the order of two rows for each name: numbers from the largest, texts
// from the first. Idle times begin with the shortest.
var compare = map[string]func(a, b *Row) int{
	"rate":        func(a, b *Row) int { return cmp.Compare(b.SentRate+b.ReceivedRate, a.SentRate+a.ReceivedRate) },
	"sent":        func(a, b *Row) int { return cmp.Compare(b.Sent, a.Sent) },
	"received":    func(a, b *Row) int { return cmp.Compare(b.Received, a.Received) },
	"age":         func(a, b *Row) int { return cmp.Compare(b.Age, a.Age) },
	"idle":        func(a, b *Row) int { return cmp.Compare(a.Idle, b.Idle) },
	"rtt":         func(a, b *Row) int { return cmp.Compare(b.RTT, a.RTT) },
	"retransmits": func(a, b *Row) int { return cmp.Compare(b.Retransmits, a.Retransmits) },
	"queued":      func(a, b *Row) int { return cmp.Compare(b.Queued, a.Queued) },
	"protocol":    func(a, b *Row) int { return cmp.Compare(a.Protocol, b.Protocol) },
	"state":       func(a, b *Row) int { return cmp.Compare(a.State, b.State) },
	"guest":       func(a, b *Row) int { return compareHosts(a.Guest, b.Guest) },
	"remote":      func(a, b *Row) int { return compareHosts(a.Remote, b.Remote) },
	"rule":        func(a, b *Row) int { return cmp.Compare(a.Rule, b.Rule) },
}

// Sort orders rows by one of Orders. What is equal there is ordered by what moved
// most, and then by its addresses, so that rows do not jump about.
func Sort(rows []Row, order string, reverse bool) {
	first := compare[order]
	if first == nil {
		first = compare[Orders[0]]
	}
	slices.SortStableFunc(rows, func(a, b Row) int {
		n := first(&a, &b)
		if reverse {
			n = -n
		}
		return cmp.Or(n, cmp.Compare(b.Sent+b.Received, a.Sent+a.Received), cmp.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.Remote, b.Remote))
	})
}

// compareHosts orders addresses by their number, as far as they are some.
func compareHosts(a, b string) int {
	x, errX := addressPort(a)
	y, errY := addressPort(b)
	if errX != nil || errY != nil {
		return cmp.Compare(a, b)
	}
	return x.Compare(y)
}

// addressPort reads an address with or without a port.
func addressPort(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, nil
	}
	a, err := netip.ParseAddr(s)
	return netip.AddrPortFrom(a, 0), err
}

// Filter says which flows are wanted. What is empty does not matter.
type Filter struct {
	Protocol  string       // tcp, udp, icmp
	Direction string       // out, in, bypass: either way past the link
	State     string       // as the flow has it, whatever its case
	Address   netip.Prefix // either side's
	Port      uint16       // either side's
	Words     []string     // each is in what is shown, or is not if it begins with "!"
}

// Match tells whether a row is wanted.
func (f *Filter) Match(r *Row) bool {
	if f.Protocol != "" && !strings.EqualFold(f.Protocol, r.Protocol) || f.State != "" && !strings.EqualFold(f.State, r.State) {
		return false
	}
	if f.Direction != "" && f.Direction != r.Direction && !(f.Direction == "bypass" && strings.HasPrefix(r.Direction, "bypass-")) {
		return false
	}
	if f.Address.IsValid() || f.Port != 0 {
		guest, errG := addressPort(r.Guest)
		remote, errR := addressPort(r.Remote)
		in := func(ap netip.AddrPort, err error) bool {
			return err == nil && f.Address.Contains(ap.Addr().Unmap().WithZone(""))
		}
		if f.Address.IsValid() && !in(guest, errG) && !in(remote, errR) {
			return false
		}
		if f.Port != 0 && !(errG == nil && guest.Port() == f.Port) && !(errR == nil && remote.Port() == f.Port) {
			return false
		}
	}
	if len(f.Words) == 0 {
		return true
	}
	all := strings.ToLower(strings.Join([]string{r.Protocol, r.Direction, r.State, r.Guest, r.Remote, r.Rule, r.Name}, " "))
	for _, w := range f.Words {
		want := !strings.HasPrefix(w, "!")
		if w = strings.ToLower(strings.TrimPrefix(w, "!")); w != "" && strings.Contains(all, w) != want {
			return false
		}
	}
	return true
}

// Choose keeps the rows that a filter wants, in place.
func Choose(rows []Row, f *Filter) []Row {
	return slices.DeleteFunc(rows, func(r Row) bool { return !f.Match(&r) })
}

// ParseAddress reads an address or a prefix.
func ParseAddress(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("'%s' is no address and no prefix", s)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// ParsePort reads a port, which is not zero.
func ParsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("'%s' is no port, 1 to 65535", s)
	}
	return uint16(n), nil
}
