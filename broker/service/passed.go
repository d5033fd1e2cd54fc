// SPDX-License-Identifier: Apache-2.0

// Package service is what this program and a service manager as systemd have to do with each
// other: sockets that the manager has opened and passes on (sd_listen_fds(3)), and the
// message that all is ready (sd_notify(3)). Both are settled before the process is confined
// but for that message.
package service

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// firstPassed is the number of the first socket that is passed on.
const firstPassed = 3

// maxPassed bounds how many are, as many as a manager has any use for.
const maxPassed = 4096

// Socket is one that was passed on.
type Socket struct {
	FD   int    // open, not yet close-on-exec
	Name string // as the manager has it, for messages; "": none

	Path   string         // of a UNIX socket; "": it is one of TCP
	Type   int            // of a UNIX socket, SOCK_*
	At     netip.AddrPort // of TCP
	Dual   bool           // At is IPv6's unspecified address and stands for IPv4's, too
	Device string         // of TCP: bound to this interface
}

// String names the socket as messages do.
func (s *Socket) String() string {
	if s.Name == "" {
		return fmt.Sprintf("socket %d of the service manager", s.FD)
	}
	return fmt.Sprintf("socket %d of the service manager, %q", s.FD, s.Name)
}

// Where says what it is bound to, as options do.
func (s *Socket) Where() string {
	switch {
	case s.Path != "":
		return s.Path
	case s.Device != "":
		return s.At.String() + "%" + s.Device
	}
	return s.At.String()
}

// variables tell of sockets that are passed on. Whoever is started from here is not to
// believe them.
var variables = []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"}

// Passed returns the sockets that the environment says were passed on to this process, of
// the descriptors that its caller has left open, and takes them out of the environment. Where
// they are for another process, as for one that has started this one, there are none, and
// the environment stays.
func Passed(inherited []int) ([]Socket, error) {
	if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return nil, nil
	}
	count, names := os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range variables {
		os.Unsetenv(v)
	}
	n, err := strconv.ParseUint(count, 10, 16)
	if err != nil || n > maxPassed {
		return nil, fmt.Errorf("LISTEN_FDS is %.20q: a number of at most %d is needed", count, maxPassed)
	}
	open := make(map[int]bool, len(inherited))
	for _, fd := range inherited {
		open[fd] = true
	}
	all := make([]Socket, n)
	for i := range all {
		s := &all[i]
		s.FD = firstPassed + i
		if i < len(names) {
			s.Name = names[i]
		}
		if !open[s.FD] {
			return nil, fmt.Errorf("%v is not open: LISTEN_FDS says that there are %d", s, n)
		}
		if err := s.look(); err != nil {
			return nil, fmt.Errorf("%v: %w", s, err)
		}
	}
	return all, nil
}

// look finds out what a socket is.
func (s *Socket) look() error {
	domain, err := sock.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("SO_DOMAIN: %w; sockets are needed that listen", err)
	}
	if s.Type, err = sock.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return os.NewSyscallError("SO_TYPE", err)
	}
	listens, err := sock.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return os.NewSyscallError("SO_ACCEPTCONN", err)
	}
	name, err := sock.Getsockname(s.FD)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	if domain == unix.AF_UNIX {
		return s.lookUNIX(name, listens != 0)
	}
	return s.lookTCP(name, listens != 0)
}

func (s *Socket) lookUNIX(name unix.Sockaddr, listens bool) error {
	at, ok := name.(*unix.SockaddrUnix)
	if !ok || at.Name == "" || at.Name[0] == '@' {
		return fmt.Errorf("a UNIX socket with a path is needed")
	}
	// Of a datagram socket the worker would have the manager's own.
	if !listens {
		return fmt.Errorf("%s does not listen: a stream or seqpacket socket is needed that does", at.Name)
	}
	s.Path = at.Name
	return nil
}

func (s *Socket) lookTCP(name unix.Sockaddr, listens bool) error {
	protocol, err := sock.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP || !listens {
		return fmt.Errorf("neither a TCP socket that listens, for -t, nor a UNIX one, for -s")
	}
	switch at := name.(type) {
	case *unix.SockaddrInet4:
		s.At = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		s.At = netip.AddrPortFrom(netip.AddrFrom16(at.Addr), uint16(at.Port))
		only, err := sock.GetsockoptInt(s.FD, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if err != nil {
			return os.NewSyscallError("IPV6_V6ONLY", err)
		}
		s.Dual = only == 0 && at.Addr == [16]byte{}
	default:
		return fmt.Errorf("a socket of IPv4 or IPv6 is needed")
	}
	if s.Device, err = sock.GetsockoptString(s.FD, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil {
		return os.NewSyscallError("SO_BINDTODEVICE", err)
	}
	return nil
}
