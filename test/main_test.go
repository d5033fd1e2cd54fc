// SPDX-License-Identifier: Apache-2.0

// Package test runs the programs end to end, in network namespaces, with real
// clients and servers. See netlab for how the networks are made.
package test

import (
	"os"
	"testing"

	"aldente/test/fetcher"
	"aldente/test/netlab"
)

func TestMain(m *testing.M) {
	fetcher.Main()
	if len(os.Args) > 3 && os.Args[1] == olderArg {
		os.Exit(older(os.Args[2], os.Args[3:]))
	}
	if len(os.Args) > 2 && os.Args[1] == lookArg {
		os.Exit(lookMain(os.Args[2:]))
	}
	if len(os.Args) > 2 && os.Args[1] == goHostsArg {
		os.Exit(goHosts(os.Args[2:]))
	}
	if len(os.Args) > 2 && os.Args[1] == unixArg {
		os.Exit(dialUnix(os.Args[2:]))
	}
	if len(os.Args) > 4 && os.Args[1] == managerArg {
		os.Exit(manager(os.Args[2:]))
	}
	os.Exit(netlab.Main(m.Run))
}

// needOurs leaves a test out that asks more than another pasta does.
func needOurs(t *testing.T) {
	t.Helper()
	if !netlab.Ours() {
		t.Skip("asks more than this pasta does")
	}
}

// needRoot leaves a test out that cannot run in a user namespace.
func needRoot(t *testing.T) {
	t.Helper()
	if netlab.Nested() {
		t.Skip("needs root")
	}
}

// heavy leaves a test out of short runs.
func heavy(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("heavy")
	}
}

// family is a row of the tables that run once for each IP version.
type family struct {
	name   string // "IPv4", "IPv6"
	flag   string // "-4", "-6"
	remote string // the remote's address
	host   string // the host's address
	any    string // for listening
	lo     string // loopback
}

var families = []family{
	{"IPv4", "-4", "192.0.2.9", netlab.Host4, "0.0.0.0", "127.0.0.1"},
	{"IPv6", "-6", "2001:db8:1::9", netlab.Host6, "[::]", "::1"},
}

// at joins an address and a port.
func (f family) at(addr, port string) string {
	if f.name == "IPv6" {
		return "[" + addr + "]:" + port
	}
	return addr + ":" + port
}
