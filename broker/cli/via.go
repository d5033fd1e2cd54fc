// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"aldente/ipc"
)

// Via is a proxy for what the guest connects to.
type Via struct {
	What uint8  // ipc.Proxy*
	User string // empty: nobody
	Host string // address or name
	Port uint16 // never zero
}

// Addr is the proxy's address; zero if it has a name.
func (v *Via) Addr() netip.Addr {
	a, _ := netip.ParseAddr(v.Host)
	return a
}

func (v *Via) String() string {
	s, host := "socks5://", v.Host
	if v.What == ipc.ProxyHTTP {
		s = "http://"
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if v.User != "" {
		s += url.PathEscape(v.User) + "@"
	}
	return s + host + ":" + strconv.Itoa(int(v.Port))
}

// viaForm is what --via wants.
const viaForm = "write socks5://[USER@]HOST:PORT or http://[USER@]HOST:PORT"

// setVia takes a proxy. No error shows what was given: a password may be in it.
func setVia(p *parser, arg string) error {
	if p.c.Via != nil {
		return usagef("More than one --via: connections go by one proxy")
	}
	scheme, rest, _ := strings.Cut(arg, "://")
	v := &Via{What: ipc.ProxySOCKS5}
	switch strings.ToLower(scheme) {
	case "socks5":
	case "http":
		v.What = ipc.ProxyHTTP
	case "https":
		return nextf("give http:// and a proxy on a network that you trust, or a tunnel to it", "Invalid --via: https:// is not possible, nobody here speaks TLS")
	case "socks4", "socks4a", "socks":
		return nextf("give socks5://", "Invalid --via: only version 5 of SOCKS knows IPv6 and passwords")
	case "socks5h":
		return nextf("give socks5:// and --via-names, which tells the proxy the names that rules by name allow", "Invalid --via: what socks5h:// asks for is an option of its own")
	default:
		return nextf(viaForm, "Invalid --via")
	}
	rest = strings.TrimSuffix(rest, "/")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user := rest[:i]
		rest = rest[i+1:]
		if strings.Contains(user, ":") {
			return nextf("give it by --via-secret FILE, or fd:N", "Invalid --via: everybody on this host can read a password there")
		}
		var err error
		if v.User, err = url.PathUnescape(user); err != nil || !proxyText(v.User) || strings.Contains(v.User, ":") && v.What == ipc.ProxyHTTP {
			return nextf("it has 1 to 255 characters, and for http:// no colon", "Invalid --via: no such user is possible")
		}
	}
	host, port, err := cutPort(rest)
	if err != nil {
		return err
	}
	v.Host, v.Port = host, port
	p.c.Via = v
	return nil
}

// cutPort is host and port of a proxy.
func cutPort(s string) (host string, port uint16, err error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return "", 0, nextf(viaForm, "Invalid --via: there is no port")
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || n == 0 {
		return "", 0, nextf(viaForm, "Invalid --via: that is no port")
	}
	host = s[:i]
	if a, e := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")); e == nil && a.Is6() == strings.HasPrefix(host, "[") {
		if a = a.Unmap(); a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return "", 0, nextf(viaForm, "Invalid --via: no proxy has that address")
		}
		return a.String(), uint16(n), nil
	}
	if !proxyHost(host) {
		return "", 0, nextf(viaForm, "Invalid --via: that is neither an address nor a host's name")
	}
	return host, uint16(n), nil
}

// proxyHost tells whether a name may be that of a host.
func proxyHost(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// proxyText tells whether a text may be a user's name.
func proxyText(s string) bool {
	return s != "" && len(s) <= ipc.MaxProxySecret && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

// setViaSecret notes where the password is. It is read when all options are known.
// Shells write the second form, for <(COMMAND).
func setViaSecret(p *parser, arg string) error {
	p.c.ViaSecret, p.c.ViaSecretFD = "", -1
	for _, form := range []string{"fd:", "/dev/fd/"} {
		n, ok := strings.CutPrefix(arg, form)
		if !ok {
			continue
		}
		fd, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return nextf("give the number of an open descriptor behind "+form, "Invalid --via-secret '%s'", arg)
		}
		p.c.ViaSecretFD = int(fd)
		return nil
	}
	if arg == "" {
		return nextf("give the name of a file, or fd:N", "Invalid --via-secret '%s'", arg)
	}
	p.c.ViaSecret = arg
	return nil
}

// maxViaExcept bounds --via-except.
const maxViaExcept = 16

func setViaExcept(p *parser, arg string) error {
	prefix, err := netip.ParsePrefix(arg)
	if a, e := netip.ParseAddr(arg); e == nil && a.Zone() == "" {
		prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return nextf("give an address or a network, as 10.0.0.0/8", "Invalid --via-except '%s'", arg)
	case len(p.c.ViaExcept) == maxViaExcept:
		return usagef("Too many --via-except: at most %d", maxViaExcept)
	}
	p.c.ViaExcept = append(p.c.ViaExcept, prefix.Masked())
	return nil
}

// HasViaSecret tells whether a password is given.
func (c *Config) HasViaSecret() bool { return c.ViaSecret != "" || c.ViaSecretFD >= 0 }

// checkVia reports what of a proxy is missing.
func (c *Config) checkVia() error {
	switch v := c.Via; {
	case v == nil && (c.HasViaSecret() || c.ViaNames || len(c.ViaExcept) > 0):
		return usagef("--via-secret, --via-names and --via-except are for --via, which is not given")
	case v == nil:
		return nil
	case v.User != "" && !c.HasViaSecret():
		return nextf("give its password by --via-secret FILE, or fd:N", "--via has a user, and no password")
	case v.User == "" && c.HasViaSecret():
		return nextf("write --via "+strings.Replace(v.String(), "://", "://USER@", 1), "--via-secret needs a user")
	case c.SpliceOnly:
		return usagef("--via is for what crosses the guest's interface, and --splice-only gives it none: leave one of them out")
	case c.ViaSecretFD >= 0 && c.ViaSecretFD == c.FD:
		return usagef("--via-secret and --fd cannot be one descriptor")
	}
	return nil
}
