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

// hardware, IPv6 and IPv4 addresses, the longer forms first: a hardware address looks
// like the beginning of another.
var addressLike = regexp.MustCompile(`\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b|[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*(?:\d+\.\d+\.\d+\.\d+)?|\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`)

// text returns a text without them.
func (r *redactor) text(s string) string {
	s = addressLike.ReplaceAllStringFunc(s, func(word string) string {
		if len(word) == len("00:00:00:00:00:00") && strings.Count(word, ":") == 5 && !strings.Contains(word, "::") {
			return r.name("mac", strings.ToLower(word))
		}
		tail := ""
		a, err := netip.ParseAddr(word)
		for err != nil && strings.HasSuffix(word, ":") { // a sentence may go on behind it
			word, tail = word[:len(word)-1], tail+":"
			a, err = netip.ParseAddr(word)
		}
		if err != nil {
			return word + tail
		}
		return r.address(a) + tail
	})
	for i, n := range r.names {
		if n != "" {
			s = strings.ReplaceAll(s, n, fmt.Sprintf("domain-%d", i+1))
		}
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
