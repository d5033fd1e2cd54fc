// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

// ifreq is struct ifreq of linux/if.h with a pointer.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// setting is one of a card's, by the commands of linux/ethtool.h that read and
// write it.
type setting struct {
	name     string
	get, set uint32
}

// settings are in an order in which each may be turned on: segmentation needs
// checksums.
var settings = []setting{
	{"rx", 0x14, 0x15}, {"tx", 0x16, 0x17}, {"sg", 0x18, 0x19}, {"tso", 0x1e, 0x1f}, {"gso", 0x23, 0x24}, {"gro", 0x2b, 0x2c},
}

// ethtool has the kernel do what a command says, which is laid out as linux/ethtool.h has it.
func ethtool(name string, command unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := ifreq{data: command}
	copy(r.name[:], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r))); e != 0 {
		return e
	}
	return nil
}

// numbers is struct ethtool_ringparam, and struct ethtool_channels: a command, the most that
// there may be of four things, and how many there are.
type numbers struct {
	cmd       uint32
	most, now [4]uint32
}

// Commands, and where the numbers are.
const (
	getRings, setRings       = 0x10, 0x11
	getChannels, setChannels = 0x3c, 0x3d

	rxRing, txRing = 0, 3
	combined       = 3
)

// change reads numbers, changes some to n, and prints what they are then.
func change(args []string, get, set uint32, which ...int) error {
	n, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		return err
	}
	v := numbers{cmd: get}
	if err := ethtool(args[0], unsafe.Pointer(&v)); err != nil {
		return err
	}
	v.cmd = set
	for _, i := range which {
		v.now[i] = uint32(n)
	}
	if err := ethtool(args[0], unsafe.Pointer(&v)); err != nil {
		return err
	}
	v = numbers{cmd: get}
	err = ethtool(args[0], unsafe.Pointer(&v))
	fmt.Println(v.now[which[0]])
	return err
}

// rings: INTERFACE N is "ethtool -G INTERFACE rx N tx N".
func rings(args []string) error { return change(args, getRings, setRings, rxRing, txRing) }

// channels: INTERFACE N is "ethtool -L INTERFACE combined N".
func channels(args []string) error { return change(args, getChannels, setChannels, combined) }

// offloads: INTERFACE on|off sets what "ethtool -K" sets, as far as the driver
// lets anybody, and prints what is on then.
func offloads(args []string) error {
	var on uint32
	if args[1] == "on" {
		on = 1
	}
	value := func(cmd, data uint32) (uint32, error) {
		v := ethtoolValue{cmd, data}
		err := ethtool(args[0], unsafe.Pointer(&v))
		return v.data, err
	}
	for _, s := range settings {
		if _, err := value(s.set, on); err != nil && err != unix.EOPNOTSUPP {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for _, s := range settings {
		if v, err := value(s.get, 0); err == nil && v != 0 {
			fmt.Println(s.name)
		}
	}
	return nil
}

// features: INTERFACE prints the numbers of the features that driver and card
// have agreed on.
func features(args []string) error {
	b, err := os.ReadFile(filepath.Join("/sys/class/net", args[0], "device/features"))
	var set []string
	for i, c := range strings.TrimSpace(string(b)) {
		if c == '1' {
			set = append(set, fmt.Sprint(i))
		}
	}
	fmt.Println(strings.Join(set, " "))
	return err
}

// queues: INTERFACE prints how many queues the kernel sends by.
func queues(args []string) error {
	names, err := filepath.Glob(filepath.Join("/sys/class/net", args[0], "queues/tx-*"))
	fmt.Println(len(names))
	return err
}
