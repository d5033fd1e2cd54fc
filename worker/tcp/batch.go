// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"

	"aldente/worker/store"
)

// maxBatch is how many payloads one write takes.
const maxBatch = 256

// batch is what segments of one flow brought for its socket and what was not
// written yet: payloads in order, in the memory of the frames they came with.
type batch struct {
	flow uint32 // store.None: the batch is empty
	bufs [][]byte
	size int // bytes
}

func newBatch() batch { return batch{flow: store.None, bufs: make([][]byte, 0, maxBatch)} }

func (b *batch) of(i uint32) bool { return b.flow == i }
func (b *batch) empty() bool      { return b.flow == store.None }
func (b *batch) full() bool       { return len(b.bufs) == cap(b.bufs) }

// add appends a payload of flow i. Preconditions: the batch is empty, or of i
// and not full.
func (b *batch) add(i uint32, data []byte) {
	b.flow = i
	b.bufs = append(b.bufs, data)
	b.size += len(data)
}

func (b *batch) reset() { b.flow, b.bufs, b.size = store.None, b.bufs[:0], 0 }

// write gives the batch to a socket, and returns how much of it that has taken.
func (b *batch) write(env Env, fd int32) (int, syscall.Errno) {
	if len(b.bufs) == 1 {
		return env.Write(fd, b.bufs[0])
	}
	return env.Writev(fd, b.bufs)
}
