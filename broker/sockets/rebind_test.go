// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
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
	t.Cleanup(f.Close)
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

// TestStrayedName: one that was bound by another name of an interface is where it was; one
// whose interface goes by another name is not, whatever has its own now.
func TestStrayedName(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "d0")
	nettest.IP(t, "link property add dev d0 altname enx0123456789ab")
	f := New(Config{Logger: slog.New(slog.DiscardHandler), V4: Family{Enabled: true}})
	t.Cleanup(f.Close)
	var all []Listener
	for _, name := range []string{"d0", "enx0123456789ab"} {
		for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP} {
			l, err := f.Listen(Listener{Proto: proto, Interface: name, Port: 8000 + uint16(len(all))})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Unlisten(l.ID)
			all = append(all, l)
		}
	}
	strayed := func() (n int) {
		for i := range all {
			if _, s := f.Strayed(&all[i]); s {
				n++
			}
		}
		return n
	}
	if n := strayed(); n != 0 {
		t.Errorf("%d have strayed", n)
	}
	nettest.IP(t, "link set d0 down", "link set d0 name d9", "link set d9 up")
	if n := strayed(); n != 2 {
		t.Errorf("%d have strayed after the interface was renamed, 2 are bound by that name", n)
	}
}
