// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/tun"
)

// tunDevice is the clone device of the tun driver.
const tunDevice = "/dev/net/tun"

// openTap makes the interface in the namespace of the process, or attaches to a
// persistent one of that name, and returns its descriptor and the offloads in
// force.
func (s *server) openTap(name string) (fd int, offload uint32, err error) {
	if fd, s.tun = s.tun, -1; fd < 0 {
		if s.noTun != 0 {
			return -1, 0, &failure{"cannot open " + tunDevice + openHint(s.noTun), s.noTun}
		}
		if fd, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return -1, 0, &failure{"cannot open " + tunDevice + openHint(err), err}
		}
	}
	if offload, err = setTap(fd, name); err != nil {
		s.tun = fd // still good for another name
		return -1, 0, err
	}
	return fd, offload, nil
}

func setTap(fd int, name string) (offload uint32, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, &failure{fmt.Sprintf("interface name %q is not valid", name), err}
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := attach(fd, req); err != nil {
		return 0, &failure{fmt.Sprintf("cannot create tap %q in the namespace%s", name, tapHint(err)), err}
	}
	offload, err = tun.SetUp(fd)
	if failed := (*tun.Error)(nil); errors.As(err, &failed) {
		return 0, &failure{failed.What, failed.Unwrap()}
	}
	return offload, err
}

// How often to try for a tap that somebody else has, and how long to wait in between: an
// instance that was just ended may still be about to close it.
const (
	attachTries = 100
	attachPause = 10 * time.Millisecond
)

// attach makes fd the tap of req's name.
func attach(fd int, req *unix.Ifreq) (err error) {
	for range attachTries {
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != unix.EBUSY {
			break
		}
		time.Sleep(attachPause)
	}
	return err
}

func openHint(err error) string {
	switch {
	case errors.Is(err, unix.EACCES):
		return " (needs mode 0666, as distributions ship it)"
	case errors.Is(err, unix.ENOENT):
		return " (load the module: modprobe tun; in a container, pass the device on)"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return " (load the module: modprobe tun)"
	case errors.Is(err, unix.EPERM):
		return " (the device cgroup forbids it: allow c 10:200 rwm)"
	}
	return ""
}

func tapHint(err error) string {
	switch {
	case errors.Is(err, unix.EBUSY):
		return " (it is in use: is another instance attached to this namespace? --ns-ifname gives another name)"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST):
		return " (another interface has that name there: --ns-ifname gives another)"
	case errors.Is(err, unix.EPERM):
		return " (needs CAP_NET_ADMIN there)"
	}
	return ""
}
