// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// unknown complains of a long option that is not there, as glibc does, and names
// the one that was meant, as far as that can be guessed.
func (g *getopt) unknown(name, whole string) error {
	err := g.fail("unrecognized option '--%s'", whole)
	best, near := "", len(name)/3+1 // that many typing errors at most, and no more than two
	for i := range g.table {
		o := &g.table[i]
		if d := distance(name, o.long); o.in&g.in != 0 && d <= 2 && d < near+1 {
			best, near = o.long, d-1
		}
	}
	if u, ok := err.(*UsageError); ok && best != "" {
		u.Hint = fmt.Sprintf("Did you mean '--%s'? %s", best, u.Hint)
	}
	return err
}

// oneDash warns of a long option behind a single dash: getopt reads "-config-net"
// as -c with the argument "onfig-net".
func (g *getopt) oneDash(s string) {
	name, _, _ := strings.Cut(s, "=")
	if len(name) < 4 {
		return
	}
	for i := range g.table {
		if o := &g.table[i]; o.long == name && o.in&g.in != 0 {
			g.warn("-%s is read as short options, -%c first: did you mean --%s?", s, s[0], name)
			return
		}
	}
}

// distance is how many letters have to be inserted, removed, replaced or exchanged
// with their neighbour to make b of a.
func distance(a, b string) int {
	// Three rows of the table that the textbooks fill.
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above, row = above, row, before
	}
	return above[len(b)]
}

// addressHint says what is wrong with an address.
func addressHint(s string) string {
	addr, err := netip.ParseAddr(s)
	if host, _, ok := splitPort(s); ok {
		return "this option takes an address without a port: " + host
	}
	switch {
	case err != nil && strings.HasPrefix(s, "["):
		return "without the brackets"
	case err != nil:
		return "give a numeric IPv4 or IPv6 address"
	case addr.Zone() != "":
		return "without the interface behind the percent sign"
	}
	return fmt.Sprintf("%s is not an address that this option can use: loopback, multicast or unspecified", addr)
}

// splitPort splits what looks like an address with a port: 192.0.2.1:80,
// [2001:db8::1]:80, or the latter without brackets where it is no address so.
func splitPort(s string) (host, port string, ok bool) {
	for _, sep := range []string{":", "#"} {
		i := strings.LastIndex(s, sep)
		if i < 0 {
			continue
		}
		host, port = unbracket(s[:i]), s[i+1:]
		_, err := netip.ParseAddr(host)
		if _, number := parseNumber(port, 10, maxPort); err == nil && number {
			return host, port, true
		}
	}
	return "", "", false
}

// specHint says how a port specification is written that looks like an address and
// a port.
func specHint(spec string) string {
	if host, port, ok := splitPort(spec); ok {
		return fmt.Sprintf("an address goes before a slash: %s/%s", host, port)
	}
	return "as in 8080, 8080:80, 127.0.0.1/8080:80 or 2000-2010,~2005"
}

// warnPort warns of an IPv6 address that may have been meant to end with a port.
// 2001:db8::1:443 is an address as it stands.
func (p *parser) warnPort(option, arg string) {
	for _, proto := range []string{"tcp:", "udp:"} {
		arg = strings.TrimPrefix(arg, proto)
	}
	if addr, err := netip.ParseAddr(arg); err != nil || !addr.Is6() {
		return
	}
	host, port, ok := splitPort(arg)
	if n, err := strconv.Atoi(port); !ok || err != nil || n < 10 || strings.HasSuffix(host, ":") {
		return
	}
	p.warnf("%s %s is taken for an address as a whole; with port %s it is written [%s]:%s", option, arg, port, host, port)
}
