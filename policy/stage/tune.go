// SPDX-License-Identifier: Apache-2.0

//go:build !race

package stage

import (
	"runtime/debug"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tune makes the runtime do now what it would otherwise do when first
// needed, and be killed for.
func (p *Program) Tune() {
	if p.NoCollector {
		debug.SetGCPercent(-1)
	}
	debug.SetMemoryLimit(p.Heap)
	// The first timer makes the runtime's own epoll and eventfd descriptors.
	// The collector's scavenger uses timers.
	time.AfterFunc(time.Hour, func() {}).Stop()
	// A capture that may not become larger is told so by EFBIG, not by a signal
	// that the runtime takes for its end. Package os/signal would start a thread.
	ignore := sigaction{handler: sigIgn}
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGXFSZ), uintptr(unsafe.Pointer(&ignore)), 0, 8, 0, 0)
}

// sigaction is the kernel's struct of that name. riscv64 has no restorer, and the mask in
// its place: both are zero.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// sigIgn is SIG_IGN, asm-generic/signal-defs.h.
const sigIgn = 1
