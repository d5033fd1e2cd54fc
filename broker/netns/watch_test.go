// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWatchPID(t *testing.T) {
	for _, target := range []string{"pid", "path"} {
		c := create(t, "sleep", "60")
		tgt := Target{PID: c.PID, NetnsOnly: true}
		if target == "path" {
			tgt = Target{Path: "/proc/" + strconv.Itoa(c.PID) + "/ns/net"}
		}
		n, err := Open(tgt)
		if err != nil {
			t.Fatal(err)
		}
		w, err := n.Watch()
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
		if w.fd < 0 || w.dir >= 0 {
			t.Errorf("%s: polls instead of waiting for the process", target)
		}
		quiet(t, w)
		c.Kill()
		fires(t, w)
		w.Close()
	}
}

// TestWatchPath watches a name in a directory, as ip-netns(8) and podman make
// them.
func TestWatchPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "name")
	touch := func() {
		t.Helper()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	watch := func() *Watcher {
		t.Helper()
		n := Namespace{User: -1, Net: -1, path: path}
		w, err := n.Watch()
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	touch()
	w := watch()
	os.WriteFile(filepath.Join(dir, "other"), nil, 0o600)
	os.Remove(filepath.Join(dir, "other"))
	quiet(t, w)
	os.Remove(path)
	touch() // made anew at once: still another namespace
	fires(t, w)
	w.Close()

	w = watch()
	os.Rename(path, path+"2")
	fires(t, w)
	w.Close()

	w = watch() // gone before it is watched
	fires(t, w)
	w.Close()

	touch()
	w = watch()
	w.Close()
	os.Remove(path)
	quiet(t, w)
	w.Close()
}

// TestWatchMount watches a bind mount of a namespace, which is unmounted before
// its name is removed.
func TestWatchMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs mount: %v", err)
	}
	n, err := Open(Target{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w, err := n.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	quiet(t, w)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	fires(t, w)
}

// unreadable makes a folder that we may search and write, and not read, for as
// long as the test lasts.
func unreadable(t *testing.T) string {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "dir")
	if err := errors.Join(os.Chmod(filepath.Dir(parent), 0o711), os.Chmod(parent, 0o711), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if err := os.Chmod(dir, 0o311); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWatchUnreadable watches paths in a folder that cannot be watched: it says
// why, and notices all the same.
func TestWatchUnreadable(t *testing.T) {
	for name, end := range map[string]func(dir, path string) error{
		"removed": func(_, path string) error { return os.Remove(path) },
		"made anew": func(_, path string) error {
			return errors.Join(os.WriteFile(path+"2", nil, 0o600), os.Rename(path+"2", path))
		},
		"folder renamed":     func(dir, _ string) error { return os.Rename(dir, dir+"2") },
		"another in the way": func(dir, _ string) error { return errors.Join(os.Rename(dir, dir+"2"), os.WriteFile(dir, nil, 0o600)) },
		"stays":              nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := unreadable(t)
			path := filepath.Join(dir, "name")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			n := Namespace{User: -1, Net: -1, path: path}
			w := asOrdinary(t, &n)
			defer w.Close()
			if err := w.Polls(); !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "not read") {
				t.Errorf("polls because of %v", err)
			}
			quiet(t, w)
			if end == nil {
				time.Sleep(2200 * time.Millisecond)
				quiet(t, w)
				return
			}
			if err := end(dir, path); err != nil {
				t.Fatal(err)
			}
			fires(t, w)
			_ = os.Chmod(dir+"2", 0o700)
		})
	}
}

// asOrdinary starts watching without the right to read any folder.
func asOrdinary(t *testing.T, n *Namespace) *Watcher {
	t.Helper()
	type result struct {
		w   *Watcher
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if os.Geteuid() == 0 {
			_ = unix.Setfsuid(65534) // and the capabilities over files with it
		}
		w, err := n.Watch()
		done <- result{w, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.w
}

// TestWatchFolderMoved watches a path whose folder gets another name.
func TestWatchFolderMoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	path := filepath.Join(dir, "name")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	n := Namespace{User: -1, Net: -1, path: path}
	w, err := n.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.Polls() != nil {
		t.Skip(w.Polls())
	}
	quiet(t, w)
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	fires(t, w)
}

// TestWatchDescriptor watches a path in procfs that goes before its process.
func TestWatchDescriptor(t *testing.T) {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := Namespace{User: -1, Net: -1, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)}
	w, err := n.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	quiet(t, w)
	unix.Close(fd)
	fires(t, w)
}

func fires(t *testing.T, w *Watcher) {
	t.Helper()
	select {
	case <-w.Gone():
	case <-time.After(20 * time.Second):
		t.Error("not noticed")
	}
}

func quiet(t *testing.T, w *Watcher) {
	t.Helper()
	select {
	case <-w.Gone():
		t.Error("fired too early")
	case <-time.After(50 * time.Millisecond):
	}
}
