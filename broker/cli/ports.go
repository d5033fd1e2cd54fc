// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"strings"
)

// PortRangeFile is where the kernel tells the ephemeral ports, ip-sysctl.rst.
const PortRangeFile = "/proc/sys/net/ipv4/ip_local_port_range"

// defaultEphemeral is the kernel's default, for when the file is out of reach.
var defaultEphemeral = PortRange{32768, 60999}

// EphemeralPorts reads the range in file, in the format of PortRangeFile.
func EphemeralPorts(file string) PortRange {
	b, err := os.ReadFile(file)
	if err != nil {
		return defaultEphemeral
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return defaultEphemeral
	}
	r, ok := parseRange(f[0] + "-" + f[1])
	if !ok {
		return defaultEphemeral
	}
	return r
}
