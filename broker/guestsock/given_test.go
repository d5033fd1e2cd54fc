// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// pair is a connected pair of UNIX sockets.
func pair(t *testing.T, typ int) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0]
}

// TestUsable: what -F may name, and what is said of the rest.
func TestUsable(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	alone, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(alone)
	for name, tt := range map[string]struct {
		fd   int
		want string // empty: it may
	}{
		"not given":     {-1, ""},
		"one of a pair": {pair(t, unix.SOCK_STREAM), ""},
		"closed":        {1 << 20, "no such descriptor is open"},
		"a file":        {int(file.Fd()), "is not a socket"},
		"datagrams":     {pair(t, unix.SOCK_DGRAM), "is not a stream socket"},
		"not connected": {alone, "is not connected"},
	} {
		err := Usable(tt.fd, ipc.LinkStream)
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "-F "+strconv.Itoa(tt.fd))) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
