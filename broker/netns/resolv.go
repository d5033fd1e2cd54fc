// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"

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

// OpenResolvConf opens the file that Command.ResolvConf was written to, of that many
// bytes, so that another text can be written later. It is for once Ready has returned and
// until Release. Where the file is not there, the command sees the host's, or somebody
// has mounted another, it is an error.
func (c *Child) OpenResolvConf(size int) (*os.File, error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(c.PID)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the command's root: %w", err)
	}
	defer unix.Close(root)
	// Links on the way are the command's, so they are not to lead out of its root.
	fd, err := unix.Openat2(root, resolvConf, &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, fmt.Errorf("the command's %s: %w", resolvConf, err)
	}
	var st unix.Stat_t
	var in unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &in)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("the command's %s: %w", resolvConf, err)
	}
	if in.Type != unix.TMPFS_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != int64(size) || st.Nlink != 1 {
		unix.Close(fd)
		return nil, fmt.Errorf("the command's %s is not the one that was made for it", resolvConf)
	}
	return os.NewFile(uintptr(fd), resolvConf), nil
}
