// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"testing"

	"aldente/ipc"
)

// TestAdmitOutbound: rules from the namespace have the families of the run, as those of
// the command line, by whichever way they come.
func TestAdmitOutbound(t *testing.T) {
	for _, tt := range []struct {
		addr           string
		dual, ip4, ip6 bool // whether they are taken, by the families of the run
	}{
		{"", true, true, true},
		{"0.0.0.0", false, true, false},
		{"::", false, false, true},
		{"127.0.0.1", false, false, false},
		{"::1", false, false, false},
	} {
		r := Rule{Proto: ipc.ProtoTCP, PortRange: PortRange{First: 80, Last: 80}, TargetPort: 80}
		if tt.addr != "" {
			r.Addr = netip.MustParseAddr(tt.addr)
		}
		for o, want := range map[SpecOptions]bool{
			{Outbound: true}:                 tt.dual,
			{Outbound: true, IPv4Only: true}: tt.ip4,
			{Outbound: true, IPv6Only: true}: tt.ip6,
		} {
			if _, err := Admit([]Rule{r}, o); (err == nil) != want {
				t.Errorf("%q, %+v: %v", tt.addr, o, err)
			}
		}
	}
}
