// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// Limits on what is taken from resolv.conf.
const (
	MaxServers = 3   // of each family
	MaxSearch  = 6   // search names
	maxName    = 255 // bytes of a domain name, RFC 1035 section 2.3.4
	maxResolv  = 64 << 10
)

// ResolvConf is where the host's resolvers are found.
const ResolvConf = "/etc/resolv.conf"

// Resolvers is the host's resolver configuration.
type Resolvers struct {
	Servers4 []netip.Addr // at most MaxServers, in the file's order
	Servers6 []netip.Addr // at most MaxServers, without zones
	Search   []string     // at most MaxSearch, without a final dot
}

// ReadResolvers reads a file in the format of resolv.conf(5), of which it
// looks at the first 64 KiB. A file that does not exist holds nothing.
func ReadResolvers(path string) (Resolvers, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Resolvers{}, nil
	}
	if err != nil {
		return Resolvers{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolv))
	if err != nil {
		return Resolvers{}, err
	}
	return ParseResolvers(text), nil
}

// ParseResolvers parses the text of a resolv.conf. As resolv.conf(5) has it,
// keywords start a line, a nameserver line holds one address, and of several
// search or domain lines the last counts. What does not parse is skipped.
func ParseResolvers(text []byte) Resolvers {
	var r Resolvers
	for line := range bytes.Lines(text) {
		fields := strings.FieldsFunc(string(line), func(c rune) bool {
			return c == ' ' || c == '\t' || c == '\n' || c == '\r'
		})
		if len(fields) < 2 || line[0] != fields[0][0] {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.addServer(fields[1])
		case "search":
			r.setSearch(fields[1:])
		case "domain":
			r.setSearch(fields[1:2])
		}
	}
	return r
}

func (r *Resolvers) addServer(s string) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return
	}
	addr = addr.WithZone("").Unmap()
	list := &r.Servers6
	if addr.Is4() {
		list = &r.Servers4
	}
	if len(*list) < MaxServers {
		*list = append(*list, addr)
	}
}

func (r *Resolvers) setSearch(names []string) {
	r.Search = nil
	for _, n := range names {
		if strings.HasPrefix(n, "#") || strings.HasPrefix(n, ";") {
			return
		}
		n = strings.TrimSuffix(n, ".")
		if strings.Contains("."+n+".", "..") || len(n) > maxName || !printable(n) { // a label is not empty
			continue
		}
		if len(r.Search) == MaxSearch {
			return
		}
		r.Search = append(r.Search, n)
	}
}

// printable refuses names that would carry control characters into logs and
// the guest's configuration.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}
