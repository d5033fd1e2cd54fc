// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHelperSays: what the helper could not do is told by name, and nothing is left.
func TestHelperSays(t *testing.T) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	own, err := os.Open("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	s := &Supervisor{null: fd, exe: fd}
	other := &Supervisor{null: fd, exe: fd, opts: Options{Identity: &Identity{UID: 1 << 30, GID: 1 << 30}}}
	for _, tt := range []struct {
		name string
		s    *Supervisor
		spec respawnSpec
		want string
		err  unix.Errno
		root bool // succeeds as root
	}{
		{"no namespace", s, respawnSpec{user: fd, mnt: fd, go1: -1}, "joining the worker's user namespace: setns: ", unix.EINVAL, false},
		{"our own", s, respawnSpec{user: int(own.Fd()), mnt: fd, go1: -1}, "joining the worker's user namespace: setns: ", unix.EINVAL, false},
		{"flags that contradict each other", s, respawnSpec{user: -1, mnt: -1, go1: -1, spaces: unix.CLONE_NEWNS | unix.CLONE_FS}, "new namespaces: clone: ", unix.EINVAL, false},
		{"another's identity", other, respawnSpec{user: -1, mnt: -1, go1: -1}, "taking the worker's identity: setresgid: ", unix.EPERM, true},
	} {
		if tt.root && os.Geteuid() == 0 {
			continue
		}
		before, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(before)
		pid, pidfd, err := tt.s.help(&tt.spec, fd, fd)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || !errors.Is(err, tt.err) || pid != 0 || pidfd != -1 {
			t.Errorf("%s: process %d, descriptor %d, %v, want %s%v", tt.name, pid, pidfd, err, tt.want, tt.err)
		}
		if after, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil || after != before {
			t.Errorf("%s: descriptors are left: %d was free, %d is", tt.name, before, after)
		} else {
			unix.Close(after)
		}
	}
}
