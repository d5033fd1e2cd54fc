// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"time"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Env is what TCP asks of its lane.
type Env interface {
	flow.Clock
	flow.Link
	flow.Direct
	flow.Broker
	flow.Rewatcher
	flow.Streams
	flow.GatherWriter
	flow.Failures
	flow.Options
	flow.Paths
	// Accept takes one connection, non-blocking and close-on-exec.
	Accept(fd int32) (conn int32, peer packet.Addr, port uint16, err syscall.Errno)
	// RecvSkip is recv with MSG_PEEK behind the first skip bytes, for
	// kernels without SO_PEEK_OFF on TCP.
	RecvSkip(fd int32, skip int, b []byte) (int, syscall.Errno)
	// RecvPieces is Recv into what lies in several places, at most 1,024.
	RecvPieces(fd int32, bufs [][]byte, flags int) (int, syscall.Errno)
	// Copyv is writev(2) to whoever looks at a flow: a limit on bytes counts no copy.
	Copyv(fd int32, bufs [][]byte) (int, syscall.Errno)
	// Wrote tells of n bytes that whoever has looked has written to a flow's socket: those
	// are counted.
	Wrote(n int)
	// RTT is the least round-trip time that TCP has seen of a connection,
	// TCP_INFO; zero: none yet.
	RTT(fd int32) (time.Duration, syscall.Errno)
}
