// SPDX-License-Identifier: Apache-2.0

package fork

import "golang.org/x/sys/unix"

// mountPoints are directories that nearly every system has. The new root is mounted
// over the first one for as long as it takes to move there.
var mountPoints = []string{"/tmp", "/proc", "/dev", "/usr"}

// PrivateMounts has the child's mounts be its own, so that nothing of what follows is
// seen outside; pivot_root(2) refuses shared ones, too.
func (l *List) PrivateMounts() *Step {
	return l.Try(unix.SYS_MOUNT, nil, "/", nil, unix.MS_REC|unix.MS_PRIVATE, nil)
}

// EmptyRoot is policy.EmptyRoot for a child, behind PrivateMounts: an empty file system
// that cannot be written takes the place of the one that is there. Until the last
// step the files are there. It goes on at refused where the system does not permit it.
func (l *List) EmptyRoot(refused Label) {
	mounted := l.Label()
	for i, dir := range mountPoints {
		next := refused
		if i < len(mountPoints)-1 {
			next = l.Label()
		}
		l.Try(unix.SYS_MOUNT, "none", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "nr_inodes=1,mode=0555").Else(next)
		l.Try(unix.SYS_CHDIR, dir).Else(refused)
		l.Jump(mounted)
		if next != refused {
			l.At(next)
		}
	}
	l.At(mounted)
	l.Try(unix.SYS_PIVOT_ROOT, ".", ".").Else(refused)
	l.Try(unix.SYS_UMOUNT2, ".", unix.MNT_DETACH).Else(refused)
	l.Try(unix.SYS_CHDIR, "/").Else(refused)
}
