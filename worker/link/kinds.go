// SPDX-License-Identifier: Apache-2.0

package link

import (
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/vhostuser"
)

// kind is one way to move frames: what it is like, and how a link of it is made.
// last is the link before, closed, whose memory may serve the next; or nil.
type kind struct {
	traits flow.Traits
	open   func(k *ipc.Link, fd int32, mtu int, last Link) Link
}

// kinds is the table of all links, by ipc.Link*.
var kinds = [...]kind{
	// All that a tap's guest has sent lies in its queue before what it asks next:
	// a smaller window is a shorter wait.
	ipc.LinkTap: {
		flow.Traits{ReceiveBatches: 4, Window: 1536 << 10},
		func(k *ipc.Link, fd int32, _ int, _ Link) Link { return NewTap(fd, k.Offload) },
	},
	// A stream's batches are short: its sender's buffer, which is not ours to
	// enlarge, holds about 200 KiB. Much is under way, in QEMU too.
	ipc.LinkStream: {
		flow.Traits{ReceiveBatches: 8, CostlyFrames: true, SoftwareGSO: true, Window: 4 << 20, Clients: true},
		func(_ *ipc.Link, fd int32, mtu int, last Link) Link { return NextStream(last, fd, mtu) },
	},
	ipc.LinkDatagram: {
		flow.Traits{ReceiveBatches: 8, CostlyFrames: true, SoftwareGSO: true, Window: 4 << 20, Clients: true, SilentEnd: true},
		func(_ *ipc.Link, fd int32, mtu int, last Link) Link { return NewDatagram(last, fd, mtu) },
	},
	ipc.LinkSeqpacket: {
		flow.Traits{ReceiveBatches: 8, CostlyFrames: true, SoftwareGSO: true, Window: 4 << 20, Clients: true},
		func(_ *ipc.Link, fd int32, mtu int, last Link) Link { return NewDatagram(last, fd, mtu) },
	},
	// Each frame is a call, both ways, and no longer than the interface takes.
	ipc.LinkPlainTap: {
		flow.Traits{ReceiveBatches: 4, SoftwareGSO: true, Window: 1536 << 10},
		func(_ *ipc.Link, fd int32, mtu int, _ Link) Link { return NewPlainTap(fd, mtu) },
	},
	// A batch is short, and one more tells that there is nothing left.
	ipc.LinkVhostUser: {
		flow.Traits{ReceiveBatches: 5, Window: 4 << 20, SharedMemory: true, Clients: true, Descriptors: vhostuser.MaxDescriptors},
		func(_ *ipc.Link, fd int32, mtu int, last Link) Link { return NewVhostUser(last, fd, mtu) },
	},
}

// TraitsOf returns what links of a kind are like. Preconditions: k is one of
// ipc.Link*, as ipc.Config.Decode sees to.
func TraitsOf(k uint8) flow.Traits { return kinds[k].traits }

// New makes the link that a record describes of its descriptor. mtu is the
// largest IP packet on it, in bytes; last the link before, closed, or nil.
// Preconditions: k was decoded.
func New(k *ipc.Link, fd int32, mtu int, last Link) Link {
	return kinds[k.Kind].open(k, fd, mtu, last)
}
