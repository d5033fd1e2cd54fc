// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// open makes a socket that is not connected yet, and returns its address.
func open(t *testing.T) (fd int, port uint32) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	return fd, address(t, fd)
}

func address(t *testing.T, fd int) uint32 {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return sa.(*unix.SockaddrNetlink).Pid
}

// forge sends an address of our own that nobody has asked for.
func forge(from int, to uint32) error {
	b := binary.NativeEndian.AppendUint32(nil, 16)
	b = binary.NativeEndian.AppendUint16(b, unix.RTM_NEWADDR)
	b = append(b, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0)
	return unix.Sendto(from, b, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: to})
}

// asks sends a request whose answer is an error of the kernel's, number 7.
func asks(t *testing.T, s *Socket) {
	t.Helper()
	b := binary.NativeEndian.AppendUint32(nil, 16)
	b = binary.NativeEndian.AppendUint16(b, 0xfff0)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, 7, 0, 0, 0, 0, 0, 0, 0)
	if err := s.Send(b); err != nil {
		t.Fatal(err)
	}
	got, err := s.Receive(make([]byte, 4096))
	if err != nil || len(got) < 16 || binary.NativeEndian.Uint16(got[4:]) != unix.NLMSG_ERROR {
		t.Fatalf("answer %x, %v", got, err)
	}
}

// TestOnlyTheKernel sends to a socket before and after it is connected.
func TestOnlyTheKernel(t *testing.T) {
	nettest.Host(t)
	from, _ := open(t)
	fd, port := open(t)
	if err := forge(from, port); err != nil {
		t.Skipf("forging takes CAP_NET_ADMIN: %v", err)
	}
	s, err := connect(fd)
	if err != nil {
		t.Fatal(err)
	}
	asks(t, s)
	if err := forge(from, port); err != unix.ECONNREFUSED {
		t.Errorf("sent to a connected socket: %v", err)
	}
	fresh, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if err := forge(from, address(t, fresh.fd)); err != unix.ECONNREFUSED {
		t.Errorf("sent to a new socket: %v", err)
	}
	asks(t, fresh)
}

// TestFloodIgnored fills the buffer of a socket that lacks its connection: the
// sender of each message counts too, and so does the end of patience.
func TestFloodIgnored(t *testing.T) {
	nettest.Host(t)
	from, _ := open(t)
	fd, port := open(t)
	fill := func() (n int) {
		for forge(from, port) == nil {
			n++
		}
		return n
	}
	n := fill()
	if n == 0 {
		t.Skip("forging takes CAP_NET_ADMIN")
	}
	s := &Socket{fd: fd}
	start := time.Now()
	if _, err := receive(s.fd, make([]byte, 4096), unix.MSG_DONTWAIT, false); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("after %d messages: %v", n, err)
	}
	if d := time.Since(start); d > 2*answerTime {
		t.Errorf("took %v", d)
	}
	for range 2 {
		if forge(from, port) != nil {
			t.Fatal("the buffer is not empty")
		}
	}
	asks(t, s)
	fill()
	s.Drain()
	asks(t, s)
}

// TestSilence waits for an answer that does not come, for a bounded time.
func TestSilence(t *testing.T) {
	nettest.Host(t)
	s, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tv, err := unix.GetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO)
	if err != nil || tv.Nano() != answerTime.Nanoseconds() {
		t.Fatalf("waits for %v, %v", tv, err)
	}
	short := unix.NsecToTimeval(1e6)
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &short); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receive(make([]byte, 16)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%v", err)
	}
}
