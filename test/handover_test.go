// SPDX-License-Identifier: Apache-2.0

package test

import (
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestPortsHandedOver starts an instance while its predecessor still holds the
// ports, as "podman restart" does.
func TestPortsHandedOver(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	ln := lab.Host.Listen("tcp", ":8080")
	c := lab.Host.ListenUDP("udp", ":8080")
	time.AfterFunc(200*time.Millisecond, func() { ln.Close() })
	time.AfterFunc(250*time.Millisecond, func() { c.Close() })
	g := lab.Guest("-t", "8080", "-u", "8080")
	go netlab.Echo(g.Listen("tcp", ":8080"))
	if got, err := netlab.Ask(lab.Host, "tcp", "127.0.0.1:8080", "here"); err != nil || got != "here" {
		t.Errorf("%q, %v", got, err)
	}
}
