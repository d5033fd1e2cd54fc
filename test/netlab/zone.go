// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// Zone is a resolver that knows some names, and remembers what it was asked. Others do
// not exist.
type Zone struct {
	mu    sync.Mutex
	names map[string]record
	below map[string]record // of all names below one, that have nothing of their own
	asked []string
}

// record is what a name has.
type record struct {
	addrs []netip.Addr
	alias string
	ttl   uint32
}

// NewZone makes a resolver that knows nothing yet.
func NewZone() *Zone { return &Zone{names: map[string]record{}, below: map[string]record{}} }

// Set has a name stand for addresses, in the place of what it had.
func (z *Zone) Set(name string, ttl uint32, addrs ...string) {
	r := record{ttl: ttl}
	for _, a := range addrs {
		r.addrs = append(r.addrs, netip.MustParseAddr(a))
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names[name] = r
}

// SetBelow has all names right below one stand for addresses, as a wildcard does.
func (z *Zone) SetBelow(name string, ttl uint32, addrs ...string) {
	z.Set(name, ttl, addrs...)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.below[name] = z.names[name]
}

// Alias has a name be another name for one.
func (z *Zone) Alias(name, to string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names[name] = record{alias: to, ttl: 60}
}

// Asked returns what was asked so far, as "name TYPE", names in lower case, each once, in
// order.
func (z *Zone) Asked() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	all := slices.Clone(z.asked)
	slices.Sort(all)
	return slices.Compact(all)
}

// Serve answers on an address and port of a namespace, by UDP and TCP, until the test ends.
func (z *Zone) Serve(n *NS, addr string) {
	n.tb.Helper()
	serveDNS(n, addr, z.answer)
}

// udpSize is what fits into an answer by UDP.
const udpSize = 1232

func (z *Zone) answer(query []byte, udp bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked = append(z.asked, fmt.Sprintf("%s %s", name, strings.TrimPrefix(q.Type.String(), "Type")))
	owner := q.Name
	for range 16 {
		r, ok := z.names[name]
		if _, parent, _ := strings.Cut(name, "."); !ok {
			r, ok = z.below[parent]
		}
		if !ok {
			m.RCode = dnsmessage.RCodeNameError
			break
		}
		h := dnsmessage.ResourceHeader{Name: owner, Class: q.Class, TTL: r.ttl}
		if r.alias != "" {
			to := dnsmessage.MustNewName(r.alias + ".")
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: to}})
			name, owner = r.alias, to
			continue
		}
		for _, a := range r.addrs {
			switch {
			case a.Is4() && q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
			case a.Is6() && q.Type == dnsmessage.TypeAAAA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
			}
		}
		break
	}
	b, _ := m.Pack()
	if udp && len(b) > udpSize {
		m.Truncated, m.Answers = true, nil
		b, _ = m.Pack()
	}
	return b
}
