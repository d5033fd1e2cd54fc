// SPDX-License-Identifier: Apache-2.0

// Package tun sets taps up for the worker: one of the agent's, and one that was passed
// to us.
package tun

import (
	"errors"

	"golang.org/x/sys/unix"
)

// header is the size of struct virtio_net_hdr, include/uapi/linux/virtio_net.h.
const header = 10

// Offloads asked for: checksums and segmentation of TCP always, that of UDP
// where the kernel has it (Linux 6.2).
const (
	OffloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	OffloadUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// Error is what cannot be set.
type Error struct {
	What string // cannot be done
	err  error
}

// Error implements error.
func (e *Error) Error() string { return e.What + ": " + e.err.Error() }

// Unwrap returns why.
func (e *Error) Unwrap() error { return e.err }

// SetUp sets the header's size of a tap that has one (IFF_VNET_HDR), and as many
// offloads as the kernel has. It returns those, TUN_F_* bits.
func SetUp(fd int) (offload uint32, err error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, header); err != nil {
		return 0, &Error{"cannot set the header size of the tap", err}
	}
	offload = OffloadTCP | OffloadUDP
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(offload))
	if errors.Is(err, unix.EINVAL) {
		offload = OffloadTCP
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(offload))
	}
	if err != nil {
		return 0, &Error{"cannot enable offloads of the tap", err}
	}
	return offload, nil
}

// SetPlain takes all offloads from a tap that has no header to tell of them.
func SetPlain(fd int) error {
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0); err != nil {
		return &Error{"cannot disable offloads of the tap", err}
	}
	return nil
}

// Flags returns how the interface was made that a descriptor is attached to, IFF_*.
// What is no such descriptor is ENOTTY or EINVAL, one that is attached to none EBADFD.
//
// The kernel uses one bit for two things: IFF_NO_PI, and that there is no filter
// (IFF_NOFILTER). So a tap that shows it is asked once more, with a filter.
func Flags(fd int) (flags uint16, err error) {
	ask := func() error {
		req, err := unix.NewIfreq("")
		if err != nil {
			return err
		}
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
		flags = req.Uint16()
		return err
	}
	if err := ask(); err != nil || flags&(unix.IFF_TAP|unix.IFF_NO_PI) != unix.IFF_TAP|unix.IFF_NO_PI {
		return flags, err
	}
	return flags, filtered(fd, ask)
}
