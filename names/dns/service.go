// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// service is an HTTPS or SVCB record, RFC 9460.
type service struct {
	dnsmessage.SVCBResource
}

func (s *service) size() int {
	n := 288
	for i := range s.Params {
		n += 40 + len(s.Params[i].Value)
	}
	return n
}

// readService reads a record, nil if it is one that clients ignore.
func readService(p *dnsmessage.Parser, h *dnsmessage.ResourceHeader, plain bool) (*service, error) {
	var r dnsmessage.SVCBResource
	var err error
	if h.Type == dnsmessage.TypeHTTPS {
		var https dnsmessage.HTTPSResource
		https, err = p.HTTPSResource()
		r = https.SVCBResource
	} else {
		r, err = p.SVCBResource()
	}
	if err != nil {
		return nil, p.SkipAnswer()
	}
	s := &service{r}
	s.Target = lowered(r.Target)
	if r.Priority == 0 {
		s.Params = nil // alias form: RFC 9460 section 2.4.2
	}
	if plain && !s.without(dnsmessage.SVCParamECH) || len(s.Params) > maxParams || !s.sound() {
		return nil, nil
	}
	return s, nil
}

// sound reports whether the parameters that are looked at are well-formed.
func (s *service) sound() bool {
	for _, p := range s.Params {
		n := len(p.Value)
		switch p.Key {
		case dnsmessage.SVCParamMandatory:
			if n == 0 || n%2 != 0 {
				return false
			}
		case dnsmessage.SVCParamIPv4Hint, dnsmessage.SVCParamIPv6Hint:
			if n == 0 || n%hintSize(p.Key) != 0 {
				return false
			}
		}
	}
	return true
}

// hintSize is the length of an address in a list of hints, in bytes.
func hintSize(k dnsmessage.SVCParamKey) int {
	if k == dnsmessage.SVCParamIPv4Hint {
		return 4
	}
	return 16
}

// without cuts a parameter out. It reports false if the client must not use the record
// then: RFC 9460 section 8.
func (s *service) without(k dnsmessage.SVCParamKey) bool {
	if !s.DeleteParam(k) {
		return true
	}
	mandatory, _ := s.GetParam(dnsmessage.SVCParamMandatory)
	for i := 0; i+1 < len(mandatory); i += 2 {
		if binary.BigEndian.Uint16(mandatory[i:]) == uint16(k) {
			return false
		}
	}
	return true
}

var hintKeys = [...]dnsmessage.SVCParamKey{dnsmessage.SVCParamIPv4Hint, dnsmessage.SVCParamIPv6Hint}

// hints calls f for each address of a record.
func (s *service) hints(f func(netip.Addr)) {
	for _, k := range hintKeys {
		v, _ := s.GetParam(k)
		for n := hintSize(k); len(v) >= n; v = v[n:] {
			addr, _ := netip.AddrFromSlice(v[:n])
			f(addr)
		}
	}
}

// mayKeep notes the addresses of a record, and the name that it leads to, for which
// there may be no room. Addresses without room are cut when the answer is written,
// since nobody grants them.
func (r *reading) mayKeep(s *service) bool {
	if s.Target.Length > 1 {
		name, err := domain.Parse(s.Target.String())
		if err != nil {
			return false
		}
		if !slices.Contains(r.aliases, name) {
			if len(r.aliases) == MaxAliases {
				return false
			}
			r.aliases = append(r.aliases, name)
		}
	}
	s.hints(func(addr netip.Addr) { r.keep(addr) })
	return true
}

// granted returns a copy of a record with hints that are granted and no others, or
// false if it makes no sense without those that are not.
func (s *service) granted(addrs []netip.Addr) (service, bool) {
	c := *s
	c.Params = slices.Clone(s.Params)
	for _, k := range hintKeys {
		v, ok := c.GetParam(k)
		if !ok {
			continue
		}
		var left []byte
		for n := hintSize(k); len(v) >= n; v = v[n:] {
			if addr, _ := netip.AddrFromSlice(v[:n]); slices.Contains(addrs, addr) {
				left = append(left, v[:n]...)
			}
		}
		if len(left) > 0 {
			c.SetParam(k, left)
		} else if !c.without(k) {
			return c, false
		}
	}
	return c, true
}
