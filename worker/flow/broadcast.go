// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"encoding/binary"

	"aldente/worker/packet"
)

// IsBroadcast tells whether a is everybody on the guest's network: the limited
// broadcast address, or that of its own IPv4 network (RFC 919 section 7).
func (g *Guest) IsBroadcast(a *packet.Addr) bool {
	if a.IsBroadcast() {
		return true
	}
	own := packet.Addr(g.Addr4)
	if !a.Is4() || !own.Is4() || g.Prefix4 == 0 || g.Prefix4 > 30 {
		return false
	}
	host := ^uint32(0) >> g.Prefix4
	return binary.BigEndian.Uint32(a[12:]) == binary.BigEndian.Uint32(own[12:])|host
}
