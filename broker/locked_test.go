// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/sockets"
	"aldente/ipc"
)

// TestConfinedBeforeServing: what a worker asks for waits until this process is
// confined.
func TestConfinedBeforeServing(t *testing.T) {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(theirs)
	in := &instance{locked: make(chan struct{}), factory: sockets.New(sockets.Config{Logger: slog.New(slog.DiscardHandler)})}
	served := make(chan error, 1)
	go func() { served <- in.serveWorker(ours) }()
	rec := make([]byte, ipc.OpenSize)
	(&ipc.Open{Proto: ipc.ProtoUDP, Dst: [16]byte{15: 1}, DstPort: 9}).Encode(rec)
	if _, err := unix.Write(theirs, rec); err != nil {
		t.Fatal(err)
	}
	answered := func(within time.Duration) bool {
		p := []unix.PollFd{{Fd: int32(theirs), Events: unix.POLLIN}}
		for end := time.Now().Add(within); ; {
			n, err := unix.Poll(p, int(max(time.Until(end), 0).Milliseconds()))
			if err != unix.EINTR { // the runtime's signals
				return n == 1
			}
		}
	}
	if answered(100 * time.Millisecond) {
		t.Error("answered before")
	}
	close(in.locked)
	if !answered(5 * time.Second) {
		t.Error("not answered after")
	}
	_ = unix.Shutdown(theirs, unix.SHUT_RDWR)
	if err := <-served; err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	unix.Close(ours)
}
