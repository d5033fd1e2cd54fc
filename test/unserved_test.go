// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// TestUnknownProtocols: who speaks SCTP, or anything else that is not carried, hears that
// at once from the kernel, and does not wait.
func TestUnknownProtocols(t *testing.T) {
	needOurs(t)
	g := netlab.New(t, netlab.Options{}).Guest()
	for _, proto := range []int{unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_GRE, unix.IPPROTO_ESP, unix.IPPROTO_UDPLITE} {
		for _, f := range families {
			want := syscall.ENOPROTOOPT
			if f.name == "IPv6" {
				want = syscall.EPROTO
			}
			if err := g.Do(func() error { return rawRefused(proto, netip.MustParseAddr(f.remote), want) }); err != nil {
				t.Errorf("protocol %d, %s: %v", proto, f.name, err)
			}
		}
	}
}

// rawRefused sends one packet of a protocol and waits for the error that the kernel makes
// of the answer.
func rawRefused(proto int, to netip.Addr, want syscall.Errno) error {
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if to.Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
		level, option = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return err
	}
	tv := unix.NsecToTimeval(int64(3 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("sixteen bytes...")); err != nil {
		return err
	}
	if _, err := unix.Read(fd, make([]byte, 100)); err != want {
		if err == nil {
			err = syscall.EEXIST // something was received
		}
		return err
	}
	return nil
}
