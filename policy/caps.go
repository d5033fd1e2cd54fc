// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"

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
	_ = unix.Prctl(unix.PR_SET_SECUREBITS, secureNothing|secureNothingLocks, 0, 0, 0)
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
