// SPDX-License-Identifier: Apache-2.0

package report

import "fmt"

// Throughput is the unit of bulk transfers, and of the plots.
const Throughput = "Gbit/s"

// BulkRow names a row of bulk TCP through the tap. Sysctls is "default" or "tuned".
func BulkRow(mtu int, sysctls string, flows int, down bool) string {
	return fmt.Sprintf("TCP %s, MTU %d, %s, %d flows", Direction(down), mtu, sysctls, flows)
}

// Direction is down, towards the guest, or up.
func Direction(down bool) string {
	if down {
		return "down"
	}
	return "up"
}

// TapPlots are bulk TCP against the MTU, and against the number of flows.
func TapPlots() []Plot {
	var all []Plot
	for _, down := range []bool{false, true} {
		d := Direction(down)
		mtu := Plot{File: "mtu-" + d + ".svg", Title: "TCP " + d + ", 1 flow, Gbit/s, by MTU", Unit: Throughput}
		for _, m := range []int{1500, 9000, 65520} {
			mtu.Groups = append(mtu.Groups, fmt.Sprint(m))
			mtu.Rows = append(mtu.Rows, BulkRow(m, "default", 1, down))
		}
		flows := Plot{File: "flows-" + d + ".svg", Title: "TCP " + d + ", MTU 65520, Gbit/s, by flows", Unit: Throughput}
		for _, n := range []int{1, 4, 64} {
			flows.Groups = append(flows.Groups, fmt.Sprint(n))
			flows.Rows = append(flows.Rows, BulkRow(65520, "default", n, down))
		}
		all = append(all, mtu, flows)
	}
	return all
}
