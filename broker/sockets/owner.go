// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Explain adds to the error of a listener that could not have its port who has it,
// as far as this process may know: `in use by "dnsmasq" (pid 812, user dnsmasq)`,
// or less. It reads /proc, so it must be called before lock-down.
func (f *Factory) Explain(l *Listener, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	f.ports.mu.Lock()
	defer f.ports.mu.Unlock()
	all, e := f.ports.kernel.on(l.Proto, l.Port, 0)
	if e != nil {
		return err
	}
	for i := range all {
		h := &all[i]
		a, want := h.local.Addr(), l.Addr.WithZone("")
		if !want.IsValid() || want.IsUnspecified() || a.IsUnspecified() || a == want {
			return fmt.Errorf("cannot listen on %s port %s: %s: %w", protoName(l.Proto), where(l), f.owner(h), unix.EADDRINUSE)
		}
	}
	return err
}

// Confined says that this process may read no file any more: whoever has a port is
// known by the number of his user alone.
func (f *Factory) Confined() { f.confined.Store(true) }

func (f *Factory) owner(h *holder) string {
	name := fmt.Sprintf("user %d", h.uid)
	if f.confined.Load() {
		return "in use by a process of " + name
	}
	if u, err := user.LookupId(strconv.FormatUint(uint64(h.uid), 10)); err == nil {
		name = "user " + u.Username
	}
	if pid, command := process(h.inode); pid != 0 {
		return fmt.Sprintf("in use by %q (pid %d, %s)", command, pid, name)
	}
	return "in use by a process of " + name
}

// process finds a process that has the socket, among those that we may look at.
func process(inode uint32) (pid int, command string) {
	link := fmt.Sprintf("socket:[%d]", inode)
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		fds, _ := os.ReadDir("/proc/" + d.Name() + "/fd")
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/" + d.Name() + "/fd/" + fd.Name()); err != nil || to != link {
				continue
			}
			b, _ := os.ReadFile("/proc/" + d.Name() + "/comm")
			return pid, strings.TrimSpace(string(b))
		}
	}
	return 0, ""
}
