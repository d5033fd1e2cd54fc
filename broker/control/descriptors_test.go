// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
)

// TestDescriptors: what clients send along is nobody's, and none is left behind; what an
// answer brings is the client's.
func TestDescriptors(t *testing.T) {
	in := &capturing{}
	shows, _, _ := both(t, in, nil)
	count := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	var asked int32 // captures; one that nobody waits for may begin late
	settled := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); count() != want || in.ended.Load() != asked; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d descriptors, want %d; %d captures ended of %d", count(), want, in.ended.Load(), asked)
			}
		}
	}
	say := func(words string, fds ...int) *net.UnixConn {
		c := dial(t, shows)
		if _, _, err := c.WriteMsgUnix([]byte(words), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := count()
	for _, fds := range [][]int{{0}, {0, 1}, make([]int, 200)} {
		c := say(wantStatus, fds...)
		if r := replies(t, c); len(r) != 1 || r[0].Status == nil {
			t.Errorf("%d descriptors: %+v", len(fds), r)
		}
		c.Close()
	}
	settled(before)
	const wantCapture = `{"version":1,"command":"capture","capture":{"protocol":"tcp","port":80}}` + "\n"
	for _, way := range []string{"closes at once", "reads nothing", "writes no more", "writes something", "reads"} {
		c := say(wantCapture, 0, 0)
		asked++
		if way != "closes at once" {
			line, oob := make([]byte, 100), make([]byte, 100)
			n, oobn, _, _, err := c.ReadMsgUnix(line, oob)
			if err != nil || string(line[:n]) != "{}\n" {
				t.Fatalf("%s: %q, %v", way, line[:n], err)
			}
			m, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(m) != 1 {
				t.Fatalf("%s: %d messages, %v", way, len(m), err)
			}
			fds, err := unix.ParseUnixRights(&m[0])
			if err != nil || len(fds) != 1 || *in.spec.Load() != (api.CaptureSpec{Protocol: "tcp", Port: 80}) {
				t.Fatalf("%s: %d descriptors, %v, %+v", way, len(fds), err, in.spec.Load())
			}
			if in.ended.Load() == asked {
				t.Errorf("%s: it has ended by itself", way)
			}
			switch way {
			case "writes no more":
				_ = c.CloseWrite()
			case "writes something":
				_, _ = io.WriteString(c, "x")
			case "reads":
				c.Close()
				b := make([]byte, 100)
				if n, err := unix.Read(fds[0], b); err != nil || string(b[:n]) != "frames" {
					t.Errorf("%q, %v", b[:n], err)
				}
				if _, err := unix.Write(fds[0], b); err != unix.EBADF {
					t.Errorf("it can be written: %v", err)
				}
			}
			if way != "reads nothing" && way != "reads" {
				_, _ = io.ReadAll(c) // the instance closes
			}
			unix.Close(fds[0])
		}
		c.Close()
		settled(before)
	}
	in.fails.Store(true)
	c := say(wantCapture)
	if r := replies(t, c); len(r) != 1 || r[0].Error != "no worker" {
		t.Errorf("%+v", r)
	}
	c.Close()
	settled(before)
}

// capturing is an instance that can be captured.
type capturing struct {
	fake
	fails atomic.Bool
	ended atomic.Int32
	spec  atomic.Pointer[api.CaptureSpec]
}

func (k *capturing) Capture(spec *api.CaptureSpec) (int, func(), error) {
	var p [2]int
	if k.fails.Load() {
		return -1, nil, errors.New("no worker")
	}
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, nil, err
	}
	_, _ = unix.Write(p[1], []byte("frames"))
	k.spec.Store(spec)
	return p[0], func() {
		unix.Close(p[1])
		k.ended.Add(1)
	}, nil
}
