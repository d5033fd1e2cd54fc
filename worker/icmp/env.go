// SPDX-License-Identifier: Apache-2.0

package icmp

import "aldente/worker/flow"

// Env is what echo asks of its lane.
type Env interface {
	flow.Clock
	flow.Link
	flow.Broker
	flow.Watcher
	flow.Receiver
	flow.GatherWriter
	flow.Errors
	flow.Options
}
