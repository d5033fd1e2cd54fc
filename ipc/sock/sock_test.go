// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// names are addresses as x/sys has them, of sockets that can be bound here.
func names(t *testing.T) map[string]unix.Sockaddr {
	dir := t.TempDir()
	return map[string]unix.Sockaddr{
		"IPv4":     &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}},
		"IPv6":     &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()},
		"path":     &unix.SockaddrUnix{Name: filepath.Join(dir, "s")},
		"abstract": &unix.SockaddrUnix{Name: "@aldente-test-" + filepath.Base(dir)},
		"unnamed":  &unix.SockaddrUnix{},
	}
}

func domain(sa unix.Sockaddr) int {
	switch sa.(type) {
	case *unix.SockaddrInet4:
		return unix.AF_INET
	case *unix.SockaddrInet6:
		return unix.AF_INET6
	}
	return unix.AF_UNIX
}

// plain is an address without what x/sys keeps for itself.
func plain(sa unix.Sockaddr) any {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	case *unix.SockaddrUnix:
		return strings.TrimSuffix(a.Name, "@") // which an unnamed one is for x/sys
	}
	return sa
}

func socket(t *testing.T, domain, typ int) int {
	t.Helper()
	fd, err := Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestAddresses: what we bind and connect to is what x/sys reads, and the other way
// round.
func TestAddresses(t *testing.T) {
	for name, sa := range names(t) {
		t.Run(name, func(t *testing.T) {
			listener := socket(t, domain(sa), unix.SOCK_STREAM)
			if err := Bind(listener, sa); err != nil {
				t.Fatal(err)
			}
			want, err := unix.Getsockname(listener)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Getsockname(listener)
			if err != nil || plain(got) != plain(want) {
				t.Fatalf("%v, want %v; %v", plain(got), plain(want), err)
			}
			if s, ok := sa.(*unix.SockaddrUnix); ok && s.Name != "" && plain(got) != s.Name {
				t.Errorf("%q, was bound to %q", plain(got), s.Name)
			}
			if err := Listen(listener, 1); err != nil {
				t.Fatal(err)
			}
			client := socket(t, domain(sa), unix.SOCK_STREAM)
			if err := Connect(client, got); err != nil {
				t.Fatal(err)
			}
			fd, from, err := Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if own, err := unix.Getsockname(client); err != nil || plain(from) != plain(own) {
				t.Errorf("accepted %v, is %v; %v", plain(from), plain(own), err)
			}
			if peer, err := Getpeername(client); err != nil || plain(peer) != plain(want) {
				t.Errorf("peer %v, want %v; %v", plain(peer), plain(want), err)
			}
			if err := Shutdown(client, unix.SHUT_WR); err != nil {
				t.Error(err)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("flags %#x, %v", flags, err)
			}
		})
	}
}

func TestAddressRefused(t *testing.T) {
	for _, sa := range []unix.Sockaddr{&unix.SockaddrInet4{Port: 65536}, &unix.SockaddrInet6{Port: -1},
		&unix.SockaddrUnix{Name: strings.Repeat("x", sizeofPath)}, &unix.SockaddrVM{}} {
		if b, err := address(sa); err == nil {
			t.Errorf("%v: % x", sa, b)
		}
	}
	for _, b := range [][]byte{nil, {1}, {0, 0}, make([]byte, 15)} {
		if sa := parse(b); sa != nil {
			t.Errorf("% x: %v", b, sa)
		}
	}
}

// TestErrors: errors are the kernel's, as errno.
func TestErrors(t *testing.T) {
	s := socket(t, unix.AF_INET, unix.SOCK_STREAM)
	_, getErr := GetsockoptInt(s, 99, 99)
	_, _, acceptErr := Accept4(s, 0)
	_, peerErr := Getpeername(s)
	_, socketErr := Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_UDP)
	_, _, _, _, recvErr := Recvmsg(s, make([]byte, 1), nil, unix.MSG_DONTWAIT)
	for _, tt := range []struct {
		what      string
		got, want error
	}{
		{"getsockopt", getErr, unix.EOPNOTSUPP}, {"accept4", acceptErr, unix.EINVAL}, {"getpeername", peerErr, unix.ENOTCONN},
		{"socket", socketErr, unix.EPROTONOSUPPORT}, {"recvmsg", recvErr, unix.ENOTCONN}, {"closed", Listen(-1, 1), unix.EBADF},
		{"shutdown", Shutdown(s, unix.SHUT_RD), unix.ENOTCONN},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %v, want %v", tt.what, tt.got, tt.want)
		}
	}
}

// TestMessages: bytes, descriptors and addresses, there and back.
func TestMessages(t *testing.T) {
	p, err := Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if err := Sendmsg(p[0], []byte("record"), unix.UnixRights(p[0]), nil, 0); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 4), make([]byte, 64)
	n, oobn, flags, from, err := Recvmsg(p[1], b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n != 4 || flags&unix.MSG_TRUNC == 0 || string(b) != "reco" || from != nil {
		t.Fatalf("%d bytes %q, flags %#x, from %v, %v", n, b, flags, from, err)
	}
	m, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(m) != 1 {
		t.Fatal(m, err)
	}
	fds, err := unix.ParseUnixRights(&m[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	unix.Close(fds[0])

	a, z := socket(t, unix.AF_INET, unix.SOCK_DGRAM), socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	for _, fd := range []int{a, z} {
		if err := Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
	}
	to, err := Getsockname(z)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := SendmsgN(a, []byte("xyz"), nil, to, 0); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	own, err := Getsockname(a)
	if err != nil {
		t.Fatal(err)
	}
	if n, _, _, from, err := Recvmsg(z, make([]byte, 1), nil, unix.MSG_TRUNC); n != 3 || err != nil || plain(from) != plain(own) {
		t.Errorf("%d bytes from %v, want %v; %v", n, plain(from), plain(own), err)
	}
}

// TestWithoutWaiting: with MSG_DONTWAIT nothing waits for a message, or for room. Where the
// scheduler is not told, a call that waits would hold up all of the process.
func TestWithoutWaiting(t *testing.T) {
	p, err := Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	b, oob := make([]byte, 4), make([]byte, 64)
	if n, _, _, _, err := Recvmsg(p[1], b, oob, unix.MSG_DONTWAIT); n != -1 || err != unix.EAGAIN {
		t.Fatalf("%d, %v", n, err)
	}
	sent := 0
	for ; err == nil; sent++ {
		_, err = SendmsgN(p[0], []byte("abc"), unix.UnixRights(p[1]), nil, unix.MSG_DONTWAIT)
	}
	if sent--; err != unix.EAGAIN || sent == 0 {
		t.Fatalf("%d sent, then %v", sent, err)
	}
	for range sent {
		n, oobn, _, _, err := Recvmsg(p[1], b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err != nil || string(b[:n]) != "abc" {
			t.Fatalf("%d, %v", n, err)
		}
		m, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(m) != 1 {
			t.Fatal(m, err)
		}
		fds, err := unix.ParseUnixRights(&m[0])
		if err != nil || len(fds) != 1 {
			t.Fatal(fds, err)
		}
		Close(fds[0])
	}
	Close(p[0])
	if n, _, _, _, err := Recvmsg(p[1], b, oob, unix.MSG_DONTWAIT); n != 0 || err != nil {
		t.Errorf("closed: %d, %v", n, err)
	}
}

// TestOptions compares with x/sys.
func TestOptions(t *testing.T) {
	s := socket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		t.Fatal(err)
	}
	if v, err := GetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 || err != nil {
		t.Error(v, err)
	}
	tv := unix.Timeval{Sec: 7}
	if err := SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	if got, err := unix.GetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO); err != nil || *got != tv {
		t.Error(got, err)
	}
	p, err := Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	want, err := unix.GetsockoptUcred(p[0], unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := GetsockoptUcred(p[0], unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || cmp.Diff(got, want) != "" {
		t.Error(got, err)
	}
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Skip(err)
	}
	if got, err := GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_COOKIE); got != cookie || err != nil {
		t.Error(got, cookie, err)
	}
	if err := BindToDevice(s, "lo"); err != nil {
		t.Skip(err)
	}
	if got, err := GetsockoptString(s, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); got != "lo" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestGroups: a group that was joined cannot be joined again, by x/sys neither.
func TestGroups(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip(err)
	}
	s := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
	four := &unix.IPMreqn{Multiaddr: [4]byte{224, 0, 0, 251}, Ifindex: int32(lo.Index)}
	if err := SetsockoptIPMreqn(s, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, four); err != nil {
		t.Error(err)
	}
	if err := unix.SetsockoptIPMreqn(s, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, four); err != unix.EADDRINUSE {
		t.Errorf("IPv4: %v", err)
	}
	s = socket(t, unix.AF_INET6, unix.SOCK_DGRAM)
	six := &unix.IPv6Mreq{Multiaddr: netip.MustParseAddr("ff02::fb").As16(), Interface: uint32(lo.Index)}
	if err := SetsockoptIPv6Mreq(s, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, six); err != nil {
		t.Skip(err) // without IPv6 on lo
	}
	if err := unix.SetsockoptIPv6Mreq(s, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, six); err != unix.EADDRINUSE {
		t.Errorf("IPv6: %v", err)
	}
}
