// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"aldente/ipc/domain"
)

func domainOf(i int) domain.Name { return domain.Name(fmt.Sprintf("n%d.test", i)) }

// TestGivenBounded: the oldest addresses go first, and those given again are new.
func TestGivenBounded(t *testing.T) {
	var g given
	g.init()
	addr := func(i int) netip.Addr {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(i)+10<<24)
		return netip.AddrFrom4(b)
	}
	for i := range 3 * maxGiven {
		g.add(addr(i), domainOf(i), 1000)
		g.add(addr(i), domainOf(i+1), 2000)
	}
	if len(g.names) != maxGiven {
		t.Errorf("%d addresses", len(g.names))
	}
	for i := range 3 * maxGiven {
		b := addr(i).As4()
		name, ttl, ok := g.find(domain.Name(fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])), 1999)
		if ok != (i >= 2*maxGiven) || ok && (name != domainOf(i+1) || ttl != 1) {
			t.Fatalf("address %d: %v %v", i, name, ok)
		}
	}
}
