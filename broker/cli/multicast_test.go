// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"testing"

	"aldente/ipc"
)

// TestMulticastErrors: what is no group is refused, and it is said what one looks like.
func TestMulticastErrors(t *testing.T) {
	many := "224.1.1.1:1"
	for n := range ipc.MaxGroups {
		many += fmt.Sprintf(",224.1.1.1:%d", n+2)
	}
	for arg, want := range map[string]string{
		"":                   "Invalid --multicast ''",
		"mdns,":              "Invalid --multicast ''",
		"none,mdns":          "Invalid --multicast 'none'",
		"all":                "Invalid --multicast 'all'",
		"224.0.0.251":        "give none, send, broadcast, mdns, ssdp, or GROUP:PORT",
		"10.0.0.1:5353":      "Invalid --multicast",
		"224.0.0.251:0":      "Invalid --multicast",
		"[ff02::fb%eth0]:99": "Invalid --multicast",
		"ff02::fb:5353":      "Invalid --multicast",
		many:                 "at most 16",
	} {
		_, err := Parse([]string{"pasta", "--multicast", arg})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", arg, err, want)
		}
	}
}
