// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/ipc"
)

// TestCaptureRecord: what clients may want, and what the worker is told of it, which it
// takes.
func TestCaptureRecord(t *testing.T) {
	name := func(s string) (n [16]byte) { copy(n[:], s); return n }
	for _, tt := range []struct {
		spec api.CaptureSpec
		name string
		want ipc.Live
		err  string
	}{
		{spec: api.CaptureSpec{}, want: ipc.Live{Name: name("guest")}},
		{spec: api.CaptureSpec{}, name: "eth0", want: ipc.Live{Name: name("eth0")}},
		{spec: api.CaptureSpec{}, name: "sixteen letters!", want: ipc.Live{Name: name("guest")}},
		{spec: api.CaptureSpec{Protocol: "tcp", Address: "192.0.2.1", Port: 80, Snap: 64, Drops: true}, name: "a",
			want: ipc.Live{Proto: ipc.ProtoTCP, Addr: netip.MustParseAddr("::ffff:192.0.2.1").As16(), Port: 80, Snap: 64, Flags: ipc.LiveDrops, Name: name("a")}},
		{spec: api.CaptureSpec{Address: "2001:db8::1", Port: 53}, name: "a", want: ipc.Live{Addr: netip.MustParseAddr("2001:db8::1").As16(), Port: 53, Name: name("a")}},
		{spec: api.CaptureSpec{Protocol: "arp", Address: "::ffff:192.0.2.1"}, name: "a",
			want: ipc.Live{Proto: ipc.LiveARP, Addr: netip.MustParseAddr("::ffff:192.0.2.1").As16(), Name: name("a")}},
		{spec: api.CaptureSpec{Protocol: "sctp"}, err: "no protocol that can be captured"},
		{spec: api.CaptureSpec{Protocol: "\x1b[2J" + strings.Repeat("x", 1000)}, err: `"\x1b[2J`},
		{spec: api.CaptureSpec{Protocol: "icmp", Port: 1}, err: "icmp has no ports"},
		{spec: api.CaptureSpec{Address: "example.org"}, err: "no address"},
		{spec: api.CaptureSpec{Address: "fe80::1%eth0"}, err: "no address"},
		{spec: api.CaptureSpec{Address: "0.0.0.0"}, err: "nobody has the address"},
		{spec: api.CaptureSpec{Address: "::"}, err: "nobody has the address"},
		{spec: api.CaptureSpec{Snap: 1 << 31}, err: "no frame has"},
	} {
		got, err := captureRecord(&tt.spec, tt.name)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || len(err.Error()) > 200 {
				t.Errorf("%+v: %v, want %q", tt.spec, err, tt.err)
			}
			continue
		}
		if err != nil || *got != tt.want {
			t.Errorf("%+v: %+v, %v, want %+v", tt.spec, got, err, tt.want)
			continue
		}
		got.ID = 1
		var again ipc.Live
		if err := again.Decode(got.Encode()); err != nil {
			t.Error(err)
		}
	}
}

// TestCaptures: as many as there may be, each with a pipe that only the worker can write
// to and that blocks nobody; what ends one makes room for another, once.
func TestCaptures(t *testing.T) {
	type sent struct {
		ipc.Live
		flags int // of the descriptor, -1: none
	}
	var told []sent
	var fails error
	c := captures{send: func(rec []byte, fd int) error {
		s := sent{flags: -1}
		if err := s.Decode(rec); err != nil {
			t.Fatal(err)
		}
		if fd >= 0 {
			s.flags, _ = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		}
		told = append(told, s)
		return fails
	}}
	free := func() int {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		return fd
	}
	before := free()
	var ends []func()
	for i := range ipc.MaxLive {
		pipe, end, err := c.begin(&api.CaptureSpec{}, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(uintptr(pipe), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
			t.Errorf("the client's end: %#x, %v", flags, err)
		}
		if s := told[len(told)-1]; s.ID != uint32(i+1) || s.flags&unix.O_ACCMODE != unix.O_WRONLY || s.flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the worker is told %+v", s)
		}
		if n, err := unix.Read(pipe, make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("the pipe has another end: %d, %v", n, err)
		}
		unix.Close(pipe)
		ends = append(ends, end)
	}
	if _, _, err := c.begin(&api.CaptureSpec{}, "eth0"); err == nil || !strings.Contains(err.Error(), "4 captures are going on") {
		t.Errorf("one more: %v", err)
	}
	ends[1]()
	ends[1]()
	if s := told[len(told)-1]; s.Live != (ipc.Live{ID: 2, Flags: ipc.LiveEnd}) || s.flags != -1 || len(told) != ipc.MaxLive+1 {
		t.Errorf("the worker is told %+v", told[ipc.MaxLive:])
	}
	fails = unix.EPIPE
	if _, _, err := c.begin(&api.CaptureSpec{}, "eth0"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("without a worker: %v", err)
	}
	fails = nil
	pipe, end, err := c.begin(&api.CaptureSpec{}, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pipe)
	for _, end := range append(ends, end) {
		end()
	}
	if after := free(); c.going != 0 || after != before {
		t.Errorf("%d captures, descriptor %d is free, before %d", c.going, after, before)
	}
}
