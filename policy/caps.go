// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"github.com/syndtr/gocapability/capability"
	"golang.org/x/sys/unix"
)

// Securebits that take away what user 0 gains by exec and close the ways back,
// include/uapi/linux/securebits.h. Each lock is the bit above its switch.
const (
	secureNoRoot       = 1 << 0
	secureNoSetuid     = 1 << 2
	secureKeepCaps     = 1 << 4
	secureNoAmbient    = 1 << 6
	secureNothing      = secureNoRoot | secureNoSetuid | secureNoAmbient
	secureNothingLocks = (secureNothing | secureKeepCaps) << 1

	// SecureNothing are all of those, for PR_SET_SECUREBITS.
	SecureNothing = secureNothing | secureNothingLocks
)

// highestCapability bounds loops over capabilities; the kernel has 64 bits.
const highestCapability = 63

// DropCapabilities empties every set of the calling thread: bounding,
// inheritable, permitted, effective, ambient.
//
// Preconditions: the thread is locked and about to replace the executable.
// Other threads keep what they have; the new image has only this one.
func DropCapabilities() error {
	// Fails without CAP_SETPCAP, that is, where there is nothing to lose.
	_ = unix.Prctl(unix.PR_SET_SECUREBITS, SecureNothing, 0, 0, 0)
	c, err := capability.NewPid2(0)
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	c.Clear(capability.CAPS | capability.BOUNDS | capability.AMBS)
	if err := c.Apply(capability.CAPS | capability.BOUNDS | capability.AMBS); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// Capabilities is a set of capabilities; bit N is number N of
// include/uapi/linux/capability.h.
type Capabilities uint64

// BindLowPorts is what binding a port below net.ipv4.ip_unprivileged_port_start
// takes.
const BindLowPorts Capabilities = 1 << unix.CAP_NET_BIND_SERVICE

// NetAdmin is what changing the addresses and routes of a network takes.
const NetAdmin Capabilities = 1 << unix.CAP_NET_ADMIN

// EmptyBoundingSet takes from all threads what they could gain by exec. Those
// without CAP_SETPCAP have nothing to gain, once under no_new_privs.
func EmptyBoundingSet() {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil || data[0].Effective&(1<<unix.CAP_SETPCAP) == 0 {
		return
	}
	defer Awake()()
	for c := range uintptr(highestCapability + 1) {
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno != 0 {
			return // EINVAL: above the kernel's last capability
		}
	}
}

// KeepCapabilities takes all capabilities but those in keep from all threads of
// the process. Nothing is added: what the process does not have it does not get.
func KeepCapabilities(keep Capabilities) Layer {
	const name = "capabilities"
	EmptyBoundingSet()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return Layer{name, Missing, err.Error()}
	}
	if data != ([2]unix.CapUserData{}) {
		have := Capabilities(data[1].Permitted)<<32 | Capabilities(data[0].Permitted)
		keep &= have
		data = [2]unix.CapUserData{
			{Effective: uint32(keep), Permitted: uint32(keep)},
			{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
		}
		defer Awake()()
		// Ambient capabilities go with the inheritable ones.
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)),
			uintptr(unsafe.Pointer(&data)), 0); errno != 0 {
			return Layer{name, Missing, errno.Error()}
		}
	} else {
		keep = 0
	}
	l := Layer{name, InForce, "none"}
	if keep != 0 {
		l.Detail = "CAP_NET_BIND_SERVICE only"
	}
	// Whoever has no capability cannot empty the bounding set, which is of use
	// only to exec, and not under no_new_privs.
	if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0); err == nil && has != 0 {
		l.Detail += ", bounding set without use"
	}
	return l
}

// KeepThroughSetuid has all threads keep their permitted capabilities when they
// change from user 0 to another, until KeepCapabilities.
func KeepThroughSetuid() error {
	defer Awake()()
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0)
	if errno != 0 && !errors.Is(errno, unix.ENOTSUP) { // ENOTSUP: a race detector build
		return fmt.Errorf("PR_SET_KEEPCAPS: %w", errno)
	}
	return nil
}

// CheckCapabilities looks at the calling thread. Permitted, effective,
// inheritable and ambient sets must be empty; a bounding set that a process
// without CAP_SETPCAP could not empty counts as Partial, since no_new_privs
// keeps it from being used.
func CheckCapabilities() Layer {
	l := Layer{Name: "capabilities", State: InForce, Detail: "all sets empty"}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return Layer{l.Name, Missing, err.Error()}
	}
	if data != ([2]unix.CapUserData{}) {
		return Layer{l.Name, Missing, fmt.Sprintf("effective %08x%08x", data[1].Effective, data[0].Effective)}
	}
	for c := range uintptr(highestCapability + 1) {
		switch has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); {
		case err != nil:
			return l // above the kernel's last capability
		case has != 0:
			l.State, l.Detail = Partial, "bounding set kept"
		}
	}
	return l
}
