// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// redactor replaces addresses and names, the same by the same.
type redactor struct {
	names []string // search domains
	seen  map[string]string
	kinds map[string]int
}

func newRedactor() *redactor { return &redactor{seen: map[string]string{}, kinds: map[string]int{}} }

// addressLike is what may be an address: hardware, IPv6 and IPv4, the longer forms first.
var addressLike = regexp.MustCompile(`\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b` +
	`|[0-9A-Fa-f]*:[0-9A-Fa-f:]*\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|[0-9A-Fa-f]*:[0-9A-Fa-f:]*` +
	`|\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`)

// text returns a text without them.
func (r *redactor) text(s string) string {
	s = addressLike.ReplaceAllStringFunc(s, r.word)
	for i, n := range r.names {
		if n != "" {
			s = strings.ReplaceAll(s, n, fmt.Sprintf("domain-%d", i+1))
		}
	}
	return s
}

// word replaces an address with what may stand before and behind it: a colon of the
// sentence, a protocol.
func (r *redactor) word(s string) string {
	if len(s) == len("00:00:00:00:00:00") && strings.Count(s, ":") == 5 && !strings.Contains(s, "::") {
		return r.name("mac", strings.ToLower(s))
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return r.address(a)
	}
	if t, ok := strings.CutSuffix(s, ":"); ok {
		if a, err := netip.ParseAddr(t); err == nil {
			return r.address(a) + ":"
		}
	}
	if before, rest, ok := strings.Cut(s, ":"); ok {
		return before + ":" + r.word(rest)
	}
	return s
}

// address is what stands for one. Those that say nothing about anybody stay.
func (r *redactor) address(a netip.Addr) string {
	family := "ipv4"
	if a.Is6() {
		family = "ipv6"
	}
	switch b := a.Unmap(); {
	case b.IsLoopback(), b.IsUnspecified(), b.Is4() && b.IsLinkLocalUnicast(), b.IsMulticast():
		return a.String()
	case b.IsLinkLocalUnicast():
		return r.name("link-local", a.String())
	case b.IsPrivate():
		return r.name("private-"+family, a.String())
	}
	return r.name(family, a.String())
}

// name is a kind with a number.
func (r *redactor) name(kind, what string) string {
	if r.seen[what] == "" {
		r.kinds[kind]++
		r.seen[what] = fmt.Sprintf("%s-%d", kind, r.kinds[kind])
	}
	return r.seen[what]
}
