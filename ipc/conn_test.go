// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// filled is a channel with no room left, and how many messages of one byte are in it.
func filled(t *testing.T) (from, to, n int) {
	t.Helper()
	from, to, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(from); unix.Close(to) })
	for ; ; n++ {
		switch err := SendNow(from, []byte{1}, -1); {
		case err == unix.EAGAIN && n > 0:
			return from, to, n
		case err != nil:
			t.Fatalf("message %d: %v", n, err)
		}
	}
}

// TestSendWaits: without room Send waits until there is some, and so do Replies; nothing is lost
// and what is sent comes in order, with its descriptor.
func TestSendWaits(t *testing.T) {
	for name, send := range map[string]func(conn, fd int) error{
		"Send": func(conn, fd int) error { return Send(conn, []byte("last"), fd) },
		"Replies": func(conn, fd int) error {
			var r Replies
			for range 3 {
				r.Add(&Opened{Token: 7}, fd)
				r.Keep()
			}
			return r.Send(conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to, n := filled(t)
			sent := make(chan error, 1)
			go func() { sent <- send(from, to) }()
			select {
			case err := <-sent:
				t.Fatalf("there was no room: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			buf := make([]byte, MaxRecord)
			read := func(want int) {
				t.Helper()
				k, fd, err := Receive(to, buf, 0)
				if err != nil || k != want || (fd >= 0) != (want > 1) {
					t.Fatalf("%d bytes, descriptor %d, %v; want %d bytes", k, fd, err, want)
				}
				if fd >= 0 {
					unix.Close(fd)
				}
			}
			for range n {
				read(1)
			}
			if name == "Send" {
				read(len("last"))
			} else {
				for range 3 {
					read(OpenedSize)
				}
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if _, _, err := Receive(to, buf, unix.MSG_DONTWAIT); err != unix.EAGAIN {
				t.Errorf("more has come: %v", err)
			}
		})
	}
}
