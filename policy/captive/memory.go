// SPDX-License-Identifier: Apache-2.0

//go:build captive

package captive

import "golang.org/x/sys/unix"

// shared is how a guest's memory is mapped.
const shared = unix.MAP_SHARED | unix.MAP_NORESERVE

// share maps a descriptor as if it were a guest's memory.
func share(which func(Held) int) func(Held) error {
	return withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_MMAP, 0, 4096, unix.PROT_READ | unix.PROT_WRITE, shared, uintptr(which(h)), 0}
	})
}

var memory = attempts{
	"mmap-exec":        call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0),
	"mmap-rwx":         call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0),
	"mmap-shared":      call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS, mask, 0),
	"mmap-file":        call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE, 3, 0),
	"mmap-high-bits":   call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|1<<32, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0),
	"mprotect-exec":    mprotectExec,
	"share-exec":       call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, shared, 3, 0),
	"share-rwx":        call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, shared, 3, 0),
	"share-fixed":      call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, shared|unix.MAP_FIXED, 3, 0),
	"share-capture":    share(func(h Held) int { return h.Capture }),
	"share-stream":     share(func(h Held) int { return h.Stream }),
	"share-flow":       share(func(h Held) int { return h.Flow }),
	"share-link":       share(func(h Held) int { return h.Link }),
	"share-channel":    share(func(h Held) int { return h.Channel }),
	"share-live":       share(func(h Held) int { return h.Live }),
	"mremap":           call(unix.SYS_MREMAP, 0, 4096, 8192, unix.MREMAP_MAYMOVE, 0),
	"madvise-remove":   call(unix.SYS_MADVISE, 0, 4096, unix.MADV_REMOVE),
	"madvise-inject":   call(unix.SYS_MADVISE, 0, 4096, unix.MADV_HWPOISON),
	"userfaultfd":      call(unix.SYS_USERFAULTFD, 0),
	"pkey_mprotect":    call(unix.SYS_PKEY_MPROTECT, 0, 4096, unix.PROT_EXEC, mask),
	"memfd_secret":     call(unix.SYS_MEMFD_SECRET, 0),
	"remap_file_pages": call(unix.SYS_REMAP_FILE_PAGES, 0, 4096, 0, 0, 0),
	"process_madvise":  call(unix.SYS_PROCESS_MADVISE, 3, 0, 0, unix.MADV_COLD, 0),
	"mlock":            call(unix.SYS_MLOCK, 0, 4096),
	"futex-shared":     call(unix.SYS_FUTEX, addr(&[1]uint32{}), 0, 1, 0, 0, 0),     // FUTEX_WAIT without FUTEX_PRIVATE_FLAG
	"futex-requeue":    call(unix.SYS_FUTEX, addr(&[1]uint32{}), 3|128, 0, 0, 0, 0), // FUTEX_REQUEUE
	"futex-pi":         call(unix.SYS_FUTEX, addr(&[1]uint32{}), 6|128, 0, 0, 0, 0), // FUTEX_LOCK_PI
	"set_mempolicy":    call(unix.SYS_SET_MEMPOLICY, 0, 0, 0),
	"mseal":            call(462, 0, 4096, 0),
}
