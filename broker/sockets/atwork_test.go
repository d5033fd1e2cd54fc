// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"bytes"
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/ipc"
)

// lockedBuffer is a log that two goroutines use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// workWithin is work with limits, of which change takes some away.
func workWithin(t *testing.T, change func(*budget.Limits)) (*atWork, *lockedBuffer) {
	t.Helper()
	return workUnder(t, nil, change)
}

// workUnder is workWithin with egress rules that are followed.
func workUnder(t *testing.T, p Egress, change func(*budget.Limits)) (*atWork, *lockedBuffer) {
	t.Helper()
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	f := New(Config{
		Logger: slog.New(slog.NewTextHandler(log, nil)), Egress: p,
		V4: Family{Enabled: true, MapHostLoopback: netip.MustParseAddr("192.0.2.77")},
		V6: Family{Enabled: true, MapHostLoopback: netip.MustParseAddr("2001:db8::77")},
	})
	l := budget.Defaults(testHost)
	change(&l)
	if err := f.SetBudget(l, testHost); err != nil {
		t.Fatal(err)
	}
	f.Follow()
	_ = unix.SetsockoptTimeval(theirs, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	w := &atWork{f, theirs, make(chan error, 1)}
	go func() {
		err := f.Serve(ours)
		unix.Close(ours)
		w.done <- err
	}()
	t.Cleanup(func() {
		unix.Close(theirs)
		w.end(t)
		f.ledger.close()
		f.Close()
	})
	return w, log
}

// request asks for one socket and returns it with the answer.
func (w *atWork) request(t *testing.T, o ipc.Open) (int, ipc.Opened) {
	t.Helper()
	if _, err := unix.Write(w.worker, encode(o)); err != nil {
		t.Fatal(err)
	}
	var a ipc.Opened
	buf := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(w.worker, buf, 0)
	if err == nil {
		err = a.Decode(buf[:n])
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd, a
}

func (w *atWork) requests(t *testing.T, o ipc.Open, n int) (fds []int, last ipc.Opened) {
	t.Helper()
	for range n {
		var fd int
		if fd, last = w.request(t, o); fd >= 0 {
			fds = append(fds, fd)
		}
	}
	return fds, last
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func toLoopback(proto uint8, v6 bool, port uint16) ipc.Open {
	o := ipc.Open{Token: 1, Proto: proto, Src: netip.MustParseAddr("10.0.0.1").As16(), Dst: netip.MustParseAddr("192.0.2.77").As16(), DstPort: port}
	if v6 {
		o.Src, o.Dst = netip.MustParseAddr("2001:db8::1").As16(), netip.MustParseAddr("2001:db8::77").As16()
	}
	return o
}
