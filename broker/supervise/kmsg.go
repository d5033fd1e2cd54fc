// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/policy"
)

// kernelLog finds out which system call a filter refused. The status of the dead
// process does not say, and /proc/PID/syscall is empty by then. But the kernel
// writes an audit record. Where no audit daemon takes it, it ends up in the
// kernel's log, which can be read where kernel.dmesg_restrict is 0, or with
// CAP_SYSLOG. Elsewhere a build with the debugfilter tag names the call.
type kernelLog struct {
	mu sync.Mutex
	fd int // -1: may not be read
}

// auditDelay is how long the kernel's audit thread may take to write the record.
const auditDelay = 20 * time.Millisecond

// openKernelLog starts reading at the present end of the log.
func openKernelLog() *kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &kernelLog{fd: -1}
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		fd = -1
	}
	return &kernelLog{fd: fd}
}

func (k *kernelLog) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fd >= 0 {
		unix.Close(k.fd)
		k.fd = -1
	}
}

// forbiddenCall returns the name of the call that pid was killed for, or "".
func (k *kernelLog) forbiddenCall(pid int) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fd < 0 {
		return ""
	}
	buf := make([]byte, 8192) // /dev/kmsg gives one record for each read
	for deadline := time.Now().Add(auditDelay); ; {
		n, err := unix.Read(k.fd, buf)
		switch {
		case err == unix.EPIPE || err == unix.EINTR:
			continue // records were overwritten before they were read
		case err == unix.EAGAIN && time.Now().Before(deadline):
			p := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}
			_, _ = unix.Poll(p, 1)
			continue
		case err != nil || n <= 0:
			return ""
		}
		if nr, ok := auditedCall(string(buf[:n]), pid); ok {
			return policy.CallName(nr)
		}
	}
}

// auditedCall reads an audit record of type 1326 (AUDIT_SECCOMP,
// include/uapi/linux/audit.h) about pid.
func auditedCall(record string, pid int) (nr int, ok bool) {
	if !strings.Contains(record, "type=1326 ") || !strings.Contains(record, fmt.Sprintf(" pid=%d ", pid)) {
		return 0, false
	}
	_, rest, ok := strings.Cut(record, " syscall=")
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(rest, " ")
	nr, err := strconv.Atoi(number)
	return nr, err == nil
}
