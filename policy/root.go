// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// mountPoints are directories that nearly every system has. The new root is
// mounted over the first one for as long as it takes to move there.
var mountPoints = []string{"/tmp", "/proc", "/dev", "/usr"}

// EmptyRoot replaces the file system by an empty one that cannot be written.
//
// Preconditions: a mount namespace of the caller's own, CAP_SYS_ADMIN over it,
// and no Landlock domain, which would forbid mounting.
func EmptyRoot() error {
	// Nothing of what follows may be seen outside, and pivot_root refuses
	// shared mounts.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := mountEmpty(); err != nil {
		return err
	}
	// With the same directory for both, the old root ends up on top of the
	// new one, and "." is the way to it: pivot_root(2), "pivot_root(".", ".")".
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detaching the old root: %w", err)
	}
	return unix.Chdir("/")
}

// mountEmpty mounts an empty tmpfs and makes it the working directory.
func mountEmpty() error {
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	var all error
	for _, dir := range mountPoints {
		err := unix.Mount("none", dir, "tmpfs", flags, "nr_inodes=1,mode=0555")
		if err == nil {
			return unix.Chdir(dir)
		}
		all = errors.Join(all, fmt.Errorf("tmpfs on %s: %w", dir, err))
	}
	return all
}

// CheckRoot looks at the file system that the process sees: it must be the one
// that EmptyRoot mounted, whose only inode is its root, and read-only. An old root that
// was not detached lies on top of it, which is where ".." leads. Nothing is
// opened, which the process may not be permitted to.
func CheckRoot() Layer {
	const name = "file system"
	for _, dir := range []string{"/", "/.."} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return Layer{name, Missing, err.Error()}
		}
		switch {
		case st.Type != unix.TMPFS_MAGIC || st.Files != 1:
			return Layer{name, Missing, "the caller's files are visible"}
		case st.Flags&unix.ST_RDONLY == 0:
			return Layer{name, Partial, "empty, but not read-only"}
		}
	}
	return Layer{name, InForce, "empty, read-only"}
}
