// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// PingAllowed tells whether this process may open ping sockets, that is, whether
// net.ipv4.ping_group_range holds one of its groups.
func PingAllowed() bool {
	fd, err := sock.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.EACCES
}

// PeekOffWorks tells whether SO_PEEK_OFF works on TCP sockets of the family,
// AF_INET or AF_INET6: since Linux 6.9 and 6.11.
func PeekOffWorks(domain int) bool {
	fd, err := sock.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return sock.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0) == nil
}

// JoinsDatagrams tells whether a socket can be read several datagrams of one sender at
// a time (UDP_GRO): since Linux 5.0.
func JoinsDatagrams() bool {
	fd, err := sock.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return sock.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
}

// OwnNamespace identifies the network namespace of the calling thread, as
// SO_NETNS_COOKIE does; zero where the kernel does not tell, before Linux 5.14.
func OwnNamespace() uint64 {
	fd, err := sock.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	c, err := sock.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return c
}
