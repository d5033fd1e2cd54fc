// SPDX-License-Identifier: Apache-2.0

package udp

import "aldente/worker/flow"

// Env is what UDP asks of its lane.
type Env interface {
	flow.Clock
	flow.Link
	flow.Broker
	flow.Rewatcher
	flow.Datagrams
	flow.GatherWriter
	flow.Errors
	flow.Options
	flow.Names
}
