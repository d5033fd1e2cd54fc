// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

// A UNIX socket leads past the egress rules to whoever listens on it: a daemon
// that passes sockets or makes connections for others. Those of the abstract
// name space belong to a network namespace; the others are files. So a command
// may be given a root directory in which the folders that daemons keep theirs in
// are new and empty. The old ones are not covered, since the command could undo
// that. They are left out of a new tree of mounts, to which the command is
// confined as the agent and the worker are to theirs.

// hiddenDirs returns the folders that are new, by their real paths. The tree is put
// together over the first.
func hiddenDirs() (dirs []string) {
	for _, dir := range []string{"/run", tmpDir, "/var/run"} {
		real, err := filepath.EvalSymlinks(dir)
		if st, e := os.Stat(real); err != nil || e != nil || !st.IsDir() || real == "/" || within(real, dirs) {
			continue
		}
		dirs = append(dirs, real)
	}
	return dirs
}

const tmpDir = "/tmp"

// within tells whether a path is one of the folders or lies in one.
func within(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return path == d || strings.HasPrefix(path, d+"/") })
}

// hideStep is one of hiding's.
type hideStep struct {
	nr   uintptr
	args []any
	may  syscall.Errno // an error that is none
}

// hiding is what the command's process has to do, in order.
type hiding struct {
	dirs []string // the hidden ones
	root string   // where the new tree is put together: the first of them
	plan []hideStep
	made map[string]bool
}

// isHidden tells whether a path lies in a hidden folder, or is one.
func isHidden(path string) bool { return within(path, hiddenDirs()) }

// planHiding lays out the steps. executable is the path of the command, if it has one.
func planHiding(executable string) (*hiding, error) {
	h := &hiding{made: make(map[string]bool), dirs: hiddenDirs()}
	if len(h.dirs) == 0 {
		return nil, errors.New("cannot hide the host's sockets: there is no /run and no /tmp (--no-hide-sockets leaves them)")
	}
	root := h.dirs[0]
	h.root = root
	h.mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m")
	if err := h.keepFolder("/"); err != nil {
		return nil, fmt.Errorf("cannot hide the host's sockets: %w (--no-hide-sockets leaves them)", err)
	}
	h.newFolders()
	h.keepNamed(executable)
	cwd, err := unix.Getwd()
	if err != nil || !strings.HasPrefix(cwd, "/") {
		cwd = "/"
	}
	if within(cwd, h.dirs) && !slices.Contains(h.dirs, cwd) {
		h.parents(cwd)
		h.mkdir(root+cwd, 0o755)
		h.mount(".", root+cwd, "", unix.MS_BIND|unix.MS_REC, "")
	}
	h.mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
	h.step(0, unix.SYS_CHDIR, root)
	h.step(0, unix.SYS_PIVOT_ROOT, ".", ".")
	h.step(0, unix.SYS_UMOUNT2, ".", unix.MNT_DETACH)
	h.step(0, unix.SYS_CHDIR, "/")
	h.step(unix.EACCES, unix.SYS_CHDIR, cwd)
	return h, nil
}

// keepFolder has what a folder holds in the new tree, but for hidden folders.
func (h *hiding) keepFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if slices.Contains(h.dirs, path) {
			continue
		}
		if err := h.keepEntry(path, e); err != nil {
			return err
		}
	}
	return nil
}

func (h *hiding) keepEntry(path string, e os.DirEntry) error {
	to := h.root + path
	switch t := e.Type(); {
	case t&os.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		h.symlink(target, to)
		return nil
	case t.IsDir():
		h.mkdir(to, 0o755)
		if slices.ContainsFunc(h.dirs, func(d string) bool { return strings.HasPrefix(d, path+"/") }) {
			return h.keepFolder(path)
		}
	case t.IsRegular():
		h.file(to)
	default: // a socket, a device: not of a root directory
		return nil
	}
	h.mount(path, to, "", unix.MS_BIND|unix.MS_REC, "")
	return nil
}

// newFolders makes the new folders, with the links that the old ones have: some
// systems keep paths of programs in /run.
func (h *hiding) newFolders() {
	temporary, _ := filepath.EvalSymlinks(tmpDir)
	for _, dir := range h.dirs {
		mode := "mode=0755"
		if dir == temporary {
			mode = "mode=1777"
		}
		h.mkdir(h.root+dir, 0o755)
		h.mount("tmpfs", h.root+dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, mode+",size=50%")
		if dir == temporary {
			continue
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.Type()&os.ModeSymlink == 0 {
				continue
			}
			if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
				h.symlink(target, h.root+filepath.Join(dir, e.Name()))
			}
		}
		h.mkdir(h.root+dir+"/lock", 0o1777)
	}
	h.mkdir(h.root+h.root+runtimeDir, 0o700)
}

// runtimeDir, in the first new folder, is private: what XDG_RUNTIME_DIR is for.
const runtimeDir = "/user"

// keepNamed has what resolv.conf leads to, for a file to be mounted over, and the
// command.
func (h *hiding) keepNamed(executable string) {
	if path, err := filepath.EvalSymlinks(resolvConf); err == nil && within(path, h.dirs) {
		h.parents(path)
		h.file(h.root + path)
	}
	if !strings.Contains(executable, "/") {
		return
	}
	path, err := filepath.Abs(executable)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	// The tree covers what is in its own place.
	if err == nil && within(path, h.dirs) && !within(path, h.dirs[:1]) {
		h.parents(path)
		h.file(h.root + path)
		h.mount(path, h.root+path, "", unix.MS_BIND, "")
	}
}

const resolvConf = "/etc/resolv.conf"

// parents makes the folders that lead to a path.
func (h *hiding) parents(path string) {
	for i, c := range path {
		if c == '/' && i > 0 {
			h.mkdir(h.root+path[:i], 0o755)
		}
	}
}

func (h *hiding) mkdir(path string, mode int) {
	if h.made[path] {
		return
	}
	h.made[path] = true
	h.step(unix.EEXIST, unix.SYS_MKDIRAT, fork.AtFDCWD, path, 0o700)
	// The umask is the command's.
	h.step(0, unix.SYS_FCHMODAT, fork.AtFDCWD, path, mode)
}

func (h *hiding) file(path string) {
	h.step(unix.EEXIST, unix.SYS_MKNODAT, fork.AtFDCWD, path, unix.S_IFREG|0o644, 0)
}

func (h *hiding) symlink(target, path string) {
	h.step(unix.EEXIST, unix.SYS_SYMLINKAT, target, fork.AtFDCWD, path)
}

func (h *hiding) mount(source, target, kind string, flags int, data string) {
	h.step(0, unix.SYS_MOUNT, orNil(source), target, orNil(kind), flags, orNil(data))
}

func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func (h *hiding) step(may syscall.Errno, nr uintptr, args ...any) {
	h.plan = append(h.plan, hideStep{nr, args, may})
}

// steps adds what is planned to the command's list, up to the first that fails.
func (h *hiding) steps(l *fork.List) {
	l.Phase(phaseHide)
	end := l.Label()
	for _, s := range h.plan {
		l.Note(s.nr, s.args...).Allow(s.may).Else(end)
	}
	l.At(end)
}

// hiddenEnvironment takes out of an environment what names a hidden socket, or a
// folder that is not there.
func hiddenEnvironment(env []string) []string {
	var kept []string
	dirs := hiddenDirs()
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		switch name {
		case "XDG_RUNTIME_DIR":
			if within(value, dirs) {
				e = "XDG_RUNTIME_DIR=" + dirs[0] + runtimeDir
			}
		case "TMPDIR", "TMP", "TEMP":
			if cwd, err := unix.Getwd(); within(value, dirs) && (err != nil || !within(value, []string{cwd})) {
				e = name + "=/tmp"
			}
		case "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "SSH_AGENT_PID":
			continue
		}
		kept = append(kept, e)
	}
	return kept
}
