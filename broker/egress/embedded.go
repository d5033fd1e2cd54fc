// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
)

// IPv6 addresses that a translator, a tunnel or the host itself may turn into an
// IPv4 address.
var (
	// RFC 6052 section 2.1: translators, by the well-known prefix.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
	// RFC 8215: translators of a network's own, by any length of prefix in it.
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	// RFC 4291 section 2.5.5.1: IPv4-compatible, automatic tunnels.
	compatible = netip.MustParsePrefix("::/96")
	// RFC 2765 section 2.1: IPv4-translated.
	translated = netip.MustParsePrefix("::ffff:0:0:0/96")
	// RFC 3056 section 2: 6to4.
	sixToFour = netip.MustParsePrefix("2002::/16")
	// RFC 4380 section 4: Teredo, server's address and the client's, inverted.
	teredo = netip.MustParsePrefix("2001::/32")
	// An IPv4 address that nobody has, RFC 6890 section 2.2.2.
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
)

// maxEmbedded is how many IPv4 addresses one of IPv6 may stand for.
const maxEmbedded = 6

// embedded is a list of them that needs no memory of its own.
type embedded struct {
	n    int
	addr [maxEmbedded]netip.Addr
}

func (e *embedded) add(a netip.Addr) {
	e.addr[e.n] = a
	e.n++
}

// embeddedIn finds the IPv4 addresses that a may be turned into. own are prefixes
// of the network's translators.
func embeddedIn(a netip.Addr, own []netip.Prefix) (e embedded) {
	if a.Is4() {
		return e
	}
	b := a.As16()
	last := netip.AddrFrom4([4]byte(b[12:]))
	for _, p := range own {
		if p.Contains(a) {
			e.add(behind(b, p.Bits()))
			return e // its length is known
		}
	}
	switch {
	case nat64.Contains(a), translated.Contains(a):
		e.add(last)
	case nat64Local.Contains(a):
		// The length is the network's secret. What stands where the zeros of
		// another length do is no address.
		for _, bits := range []int{48, 56, 64, 96} {
			if v4 := behind(b, bits); !thisNetwork.Contains(v4) {
				e.add(v4)
			}
		}
	case compatible.Contains(a):
		if !a.IsUnspecified() && !a.IsLoopback() {
			e.add(last)
		}
	case sixToFour.Contains(a):
		e.add(netip.AddrFrom4([4]byte(b[2:])))
	case teredo.Contains(a):
		e.add(netip.AddrFrom4([4]byte(b[4:])))
		e.add(netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	}
	// RFC 5214 section 6.1: ISATAP, in any network.
	if b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		e.add(last)
	}
	return e
}

// behind is the IPv4 address in b behind a prefix of so many bits: RFC 6052
// section 2.2 lets bits 64 to 71 out.
func behind(b [16]byte, bits int) netip.Addr {
	var v4 [4]byte
	at := bits / 8
	for i := range v4 {
		if at == 8 {
			at++
		}
		v4[i] = b[at]
		at++
	}
	return netip.AddrFrom4(v4)
}

// CheckNAT64 tells what keeps p from being the prefix of a translator.
func CheckNAT64(p netip.Prefix) error {
	switch {
	case !p.IsValid() || p.Addr().Is4() || p.Addr().Is4In6():
		return fmt.Errorf("not an IPv6 prefix")
	case p != p.Masked():
		return fmt.Errorf("%s has host bits set: meant %s?", p, p.Masked())
	}
	switch p.Bits() {
	case 32, 40, 48, 56, 64, 96:
		return nil
	}
	return fmt.Errorf("a translator's prefix has 32, 40, 48, 56, 64 or 96 bits, not %d", p.Bits())
}
