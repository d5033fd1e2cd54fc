// SPDX-License-Identifier: Apache-2.0

package flow

// Traits say how a kind of link moves frames. Whoever fills or empties a link
// asks them, never which kind it is.
type Traits struct {
	// ReceiveBatches is how many batches of frames from the guest a turn takes.
	ReceiveBatches int
	// CostlyFrames: each frame to the guest costs the other end a wake-up. What
	// is owed for all batches of a turn goes at once.
	CostlyFrames bool
	// SoftwareGSO: the link cuts super-frames itself, and they may carry more
	// than one IP packet can.
	SoftwareGSO bool
	// Window is the largest receive window of one TCP flow, in bytes: what the
	// guest may have sent and we have not read yet.
	Window int
	// SharedMemory: frames lie in memory that the other side can take away.
	SharedMemory bool
	// Clients come and go: one that comes is told of us, the end of one is
	// nothing unusual.
	Clients bool
	// Descriptors are how many a link may hold beside its own.
	Descriptors int
	// SilentEnd: that the other side is gone shows only where something is sent to it.
	SilentEnd bool
}
