// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// Filter is a program that tells what a UDP socket hears, by how many bytes of a packet
// it keeps. Nil: all. Sockets of TCP have none: newer kernels leave that to
// CAP_NET_ADMIN.
type Filter []unix.SockFilter

// Nothing is heard.
var Nothing = Filter{{Code: unix.BPF_RET | unix.BPF_K}}

// filter attaches one.
func (s *socket) filter(f Filter) {
	if s.err == nil && len(f) > 0 {
		s.err = attach(s.fd, f)
	}
}

func attach(fd int, f Filter) error {
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	err := os.NewSyscallError("SO_ATTACH_FILTER", sock.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog))
	if errors.Is(err, unix.ENOMEM) && len(f) > 1 {
		err = fmt.Errorf("%d instructions of rules for connections to the guest do not fit (net.core.optmem_max): %w", len(f), err)
	}
	return err
}

// Refilter puts a filter in the place of the one that a socket has. What goes wrong
// leaves one that hears nothing, rather than one that hears too much.
func Refilter(fd int, f Filter) error {
	var err error
	if len(f) > 0 {
		err = attach(fd, f)
	} else if err = os.NewSyscallError("SO_DETACH_FILTER", sock.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)); errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err != nil {
		err = errors.Join(err, attach(fd, Nothing))
	}
	return err
}

// Dropped is how many packets the kernel has dropped at a socket: those that its
// filter refuses, and those that found no room.
func Dropped(fd int) uint64 {
	var info [memInfoDrops + 1]uint32
	if !memInfo(fd, &info) {
		return 0
	}
	return uint64(info[memInfoDrops])
}
