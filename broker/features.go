// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/broker/tun"
	"aldente/ipc/sock"
)

// feature is what a kernel, or a host, has or lacks, and programs do without.
type feature struct {
	name string
	has  bool
	lack string // what is otherwise where it is not there
}

// String is its line of the self-test.
func (f feature) String() string {
	if f.has {
		return f.name + ": yes"
	}
	return f.name + ": no (" + f.lack + ")"
}

// hostFeatures looks at what this process may use. It is asked before the process is confined.
func hostFeatures() []feature {
	const slower = ": what peers send is read twice"
	return []feature{
		{"IPv6", hasFamily(unix.AF_INET6), "disabled, as by ipv6.disable=1, or not in this kernel: guests reach nothing by it"},
		{"pings", inet.PingAllowed(), "sysctl net.ipv4.ping_group_range has no group of ours: echo requests are not forwarded"},
		{"SO_PEEK_OFF, TCP and IPv4", inet.PeekOffWorks(unix.AF_INET), "before Linux 6.9" + slower},
		{"SO_PEEK_OFF, TCP and IPv6", inet.PeekOffWorks(unix.AF_INET6), "before Linux 6.11, or no IPv6" + slower},
		{"UDP_GRO", inet.JoinsDatagrams(), "before Linux 5.0: datagrams are read one by one"},
		{"SO_NETNS_COOKIE", inet.OwnNamespace() != 0, "before Linux 5.14: -c, --control and -a are refused where a guest could use them"},
	}
}

// tapFeature tells of a tap's offloads, TUN_F_* bits.
func tapFeature(offload uint32) feature {
	return feature{"segmentation of UDP by the tap", offload&tun.OffloadUDP == tun.OffloadUDP, "before Linux 6.2: the guest's kernel cuts datagrams itself"}
}

// hasFamily tells whether sockets of a family can be made.
func hasFamily(domain int) bool {
	fd, err := sock.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// kernelRelease names the running kernel, as uname -r -m does.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("Linux %s, %s", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
}
