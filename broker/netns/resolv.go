// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

// resolvTemp is where the command's resolv.conf is before it is mounted.
const resolvTemp = "/proc/resolv.conf"

// mountResolv puts a resolv.conf of its own over the one that the command would
// see. The file needs a file system that is ours: for the moment, one over
// /proc, which every system has as a directory and which we are going to mount
// anyway.
func mountResolv(l *fork.List, text []byte) {
	l.Phase("give the command a resolv.conf of its own")
	none, written, end := l.Label(), l.Label(), l.Label()
	l.Note(unix.SYS_MOUNT, "tmpfs", "/proc", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, nil).Else(none)
	l.Note(unix.SYS_OPENAT, fork.AtFDCWD, resolvTemp, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644).Into(slotFile).Else(end)
	// The caller's umask counts for files that the command makes, not for this.
	l.Try(unix.SYS_FCHMOD, slotFile, 0o644)
	l.Note(unix.SYS_WRITE, slotFile, text, len(text)).Else(written)
	l.Note(unix.SYS_MOUNT, resolvTemp, resolvConf, nil, unix.MS_BIND, nil)
	l.At(written)
	l.Try(unix.SYS_CLOSE, slotFile)
	l.At(end)
	l.Try(unix.SYS_UMOUNT2, "/proc", unix.MNT_DETACH)
	l.At(none)
}
