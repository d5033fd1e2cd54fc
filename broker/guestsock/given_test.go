// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"os"
	"runtime"
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
		kind uint8
	}{
		"not given":        {-1, "", ipc.LinkStream},
		"one of a pair":    {pair(t, unix.SOCK_STREAM), "", ipc.LinkStream},
		"datagrams":        {pair(t, unix.SOCK_DGRAM), "", ipc.LinkDatagram},
		"messages":         {pair(t, unix.SOCK_SEQPACKET), "", ipc.LinkSeqpacket},
		"closed":           {1 << 20, "no such descriptor is open", 0},
		"a file":           {int(file.Fd()), "is not a socket", 0},
		"not connected":    {alone, "is not connected", 0},
		"nor is this":      {lone(t, unix.AF_UNIX, unix.SOCK_DGRAM), "is not connected", 0},
		"UDP":              {lone(t, unix.AF_INET, unix.SOCK_DGRAM), "is not a stream socket", 0},
		"a clone device":   {device(t, 0), "without an interface", 0},
		"TUN":              {device(t, unix.IFF_TUN|unix.IFF_NO_PI), "TAP device is needed", 0},
		"a tap with bytes": {device(t, unix.IFF_TAP), "IFF_NO_PI", 0},
		"a plain tap":      {device(t, unix.IFF_TAP|unix.IFF_NO_PI), "", ipc.LinkPlainTap},
		"a tap":            {device(t, unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR), "", ipc.LinkTap},
	} {
		if tt.fd == noDevice {
			continue
		}
		kind, err := Usable(tt.fd, ipc.LinkStream)
		if (err == nil) != (tt.want == "") || kind != tt.kind || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "descriptor "+strconv.Itoa(tt.fd))) {
			t.Errorf("%s: kind %d, %v, want %d, %q", name, kind, err, tt.kind, tt.want)
		}
		if tt.want != "" || tt.fd < 0 {
			continue
		}
		l, err := Prepare(tt.fd, kind)
		if flags, e := unix.FcntlInt(uintptr(tt.fd), unix.F_GETFL, 0); err != nil || e != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s: flags %#x, %v, %v", name, flags, e, err)
		}
		if l.Kind != kind || (l.Offload&unix.TUN_F_TSO4 != 0) != (kind == ipc.LinkTap) {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

func lone(t *testing.T, domain, typ int) int {
	t.Helper()
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// noDevice stands for one that cannot be made here.
const noDevice = -2

// device is a descriptor of the clone device, attached to an interface that is made with
// these flags in a namespace of its own; without flags: to none.
func device(t *testing.T, flags uint16) int {
	t.Helper()
	fd := noDevice
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		}
		if err == nil && flags != 0 {
			req, _ := unix.NewIfreq("t0")
			req.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Logf("no tap: %v", err)
		return noDevice
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
