// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/worker/flow"
)

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
	Copier
}

// Copier is for flows that are looked at. A limit on bytes counts what leaves by them, and
// not what is shown to whoever looks: a copy that it held up would be looked for in vain.
type Copier interface {
	// Copy is write(2) of one datagram to whoever looks.
	Copy(fd int32, b []byte) (int, syscall.Errno)
	// Wrote tells of n bytes that whoever has looked has written to a flow's socket.
	Wrote(n int)
}
