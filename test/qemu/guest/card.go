// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
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

// offloads: INTERFACE on|off sets what "ethtool -K" sets, as far as the driver
// lets anybody, and prints what is on then.
func offloads(args []string) error {
	var on uint32
	if args[1] == "on" {
		on = 1
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ethtool := func(cmd, data uint32) (uint32, error) {
		v := ethtoolValue{cmd, data}
		r := ifreq{data: unsafe.Pointer(&v)}
		copy(r.name[:], args[0])
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r))); e != 0 {
			return 0, e
		}
		return v.data, nil
	}
	for _, s := range settings {
		if _, err := ethtool(s.set, on); err != nil && err != unix.EOPNOTSUPP {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for _, s := range settings {
		if v, err := ethtool(s.get, 0); err == nil && v != 0 {
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
