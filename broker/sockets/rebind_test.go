// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestStrayed: a listener whose interface is another is bound anew, and neither one that is
// in the namespace nor one of the service manager's, which has it as well.
func TestStrayed(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // bound to no interface
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f := New(Config{})
	for _, tt := range []struct {
		l    Listener
		want bool
	}{
		{Listener{Interface: "gone0"}, true}, {Listener{}, false},
		{Listener{Interface: "gone0", Namespace: true}, false}, {Listener{Interface: "gone0", Passed: true}, false},
	} {
		l := tt.l
		l.Proto, l.FD = ipc.ProtoTCP, fd
		if name, strayed := f.Strayed(&l); strayed != tt.want || name != "" {
			t.Errorf("%+v: strayed %t, to %q", tt.l, strayed, name)
		}
	}
}
