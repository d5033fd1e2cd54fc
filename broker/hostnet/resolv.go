// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits on what is taken from resolv.conf.
const (
	MaxServers = 3   // of each family
	MaxSearch  = 6   // search names
	maxName    = 255 // bytes of a domain name, RFC 1035 section 2.3.4
	maxZone    = 127 // bytes of an interface's name, which may be an alternative one

	// MaxResolvConf is how much of resolv.conf is read, in bytes.
	MaxResolvConf = 64 << 10
)

// ResolvConf is where the host's resolvers are found.
const ResolvConf = "/etc/resolv.conf"

// Resolvers is the host's resolver configuration.
type Resolvers struct {
	Servers4  []netip.Addr // at most MaxServers, in the file's order
	Servers6  []netip.Addr // at most MaxServers; link-local ones with their zones, see NumberZones
	IPv6First bool         // the file's first server is one of Servers6
	Search    []string     // at most MaxSearch, without a final dot
	Text      []byte       // by ReadResolvers: the file, as far as it was read; nil if there is none
}

// Servers returns those of both families, that of the file's first server
// first.
func (r *Resolvers) Servers() []netip.Addr {
	if r.IPv6First {
		return slices.Concat(r.Servers6, r.Servers4)
	}
	return slices.Concat(r.Servers4, r.Servers6)
}

// ReadResolvers reads a file in the format of resolv.conf(5), of which it
// looks at the lines in the first 64 KiB. A file that does not exist, or a link
// that leads nowhere, holds nothing. What is no file is an error, and nobody
// waits for a pipe.
func ReadResolvers(path string) (Resolvers, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Resolvers{}, nil
	}
	if err != nil {
		return Resolvers{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode()&fs.ModeType&^(fs.ModeDevice|fs.ModeCharDevice) != 0 {
		return Resolvers{}, errors.Join(err, fmt.Errorf("%s is not a file", path))
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxResolvConf+1))
	if err != nil {
		return Resolvers{}, err
	}
	if len(text) > MaxResolvConf { // half a line might name another server
		text = text[:1+bytes.LastIndexByte(text[:MaxResolvConf], '\n')]
	}
	r := ParseResolvers(text)
	r.Text = text
	return r, nil
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
	if zone := addr.Zone(); !addr.IsLinkLocalUnicast() {
		addr = addr.WithZone("")
	} else if len(zone) > maxZone || !printable(zone) {
		return
	}
	addr = addr.Unmap()
	list, self := &r.Servers6, netip.IPv6Loopback()
	if addr.Is4() {
		list, self = &r.Servers4, netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	switch {
	case addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return
	case addr.IsUnspecified(): // this host, to everybody who connects to it
		addr = self
	}
	r.IPv6First = r.IPv6First || addr.Is6() && len(r.Servers4) == 0
	if len(*list) < MaxServers {
		*list = append(*list, addr)
	}
}

// NumberZones has the zone of a link-local server be the number of its interface, as index
// tells it of a name. Servers of interfaces that there are not are left out: nobody can ask
// them.
func (r *Resolvers) NumberZones(index func(name string) (int, error)) {
	r.Servers6 = slices.DeleteFunc(r.Servers6, func(a netip.Addr) bool {
		return a.Zone() != "" && numberOf(a.Zone(), index) == 0
	})
	for i, a := range r.Servers6 {
		if a.Zone() != "" {
			r.Servers6[i] = a.WithZone(strconv.Itoa(numberOf(a.Zone(), index)))
		}
	}
}

// numberOf is the number of the interface that a zone means, by name or by number; zero if
// there is none.
func numberOf(zone string, index func(name string) (int, error)) int {
	if n, err := index(zone); err == nil {
		return n
	}
	n, err := strconv.ParseUint(zone, 10, 31)
	if err != nil {
		return 0
	}
	return int(n)
}

// ScopeOf is the number of the interface that a server is on, as NumberZones has it; zero
// if the file does not say.
func ScopeOf(server netip.Addr) int {
	n, _ := strconv.Atoi(server.Zone())
	return n
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
