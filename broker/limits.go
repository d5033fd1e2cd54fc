// SPDX-License-Identifier: Apache-2.0

package main

import "aldente/broker/budget"

// tellRefused sums up at the end what the egress rules have refused, unless the
// lines that name each destination have said it all.
func (in *instance) tellRefused() {
	if total, named := in.factory.Refused(); total > named {
		in.log.Warn("the egress rules have refused more than is named above", "refusals", total, "named", named)
	}
}

// tellUsage says, in the end, how much of each limit was used.
func (in *instance) tellUsage() {
	for k, u := range in.factory.Usage() {
		if u.Opened > 0 || u.Refused > 0 {
			in.log.Debug("budget", "of", budget.Kind(k), "limit", u.Limit, "held", u.Held, "most", u.Most,
				"opened", u.Opened, "refused", u.Refused, "ended", u.Ended)
		}
	}
}
