// SPDX-License-Identifier: Apache-2.0

package output

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stranger is another user.
const stranger = 64123

// tree makes files below a directory of root's. Names end in "/" for a directory;
// "a -> b" is a link. Those of a row are the stranger's.
type entry struct {
	name     string
	stranger bool
	mode     os.FileMode // of a directory, zero: 0755
}

func tree(t *testing.T, entries []entry) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes files of others")
	}
	dir := t.TempDir()
	for p := dir; p != "/"; p = filepath.Dir(p) { // as /var and /run are
		if st, err := os.Stat(p); err != nil || st.Mode().Perm()&0o022 != 0 && st.Mode()&os.ModeSticky == 0 {
			t.Skipf("%s: %v", p, err)
		}
	}
	for _, e := range entries {
		name, target, link := strings.Cut(e.name, " -> ")
		path := filepath.Join(dir, name)
		var err error
		switch {
		case link:
			err = os.Symlink(target, path)
		case strings.HasSuffix(name, "/"):
			err = os.Mkdir(path, 0o755)
		default:
			err = os.WriteFile(path, []byte("old"), 0o644)
		}
		if err == nil && e.stranger {
			err = os.Lchown(path, stranger, stranger)
		}
		if err == nil && e.mode != 0 {
			err = os.Chmod(path, e.mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestGuarded(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries []entry
		path    string
		file    string // that is written, "": refused
		says    string
	}{
		{"new file", nil, "log", "log", ""},
		{"file that is there", []entry{{name: "log"}}, "log", "log", ""},
		{"directory", []entry{{name: "d/"}}, "d/log", "d/log", ""},
		{"doubled slashes and dots", []entry{{name: "d/"}}, ".//d/./log", "d/log", ""},
		{"root's link to a directory, as /var/run", []entry{{name: "run/"}, {name: "var/"}, {name: "var/run -> ../run"}}, "var/run/log", "run/log", ""},
		{"root's links in a row", []entry{{name: "d/"}, {name: "a -> b"}, {name: "b -> ./d"}}, "a/log", "d/log", ""},
		{"root's link to a file", []entry{{name: "log -> real"}}, "log", "real", ""},
		{"the stranger's directory", []entry{{"d/", true, 0}}, "d/log", "d/log", ""},
		{"the stranger's link to a directory", []entry{{name: "etc/"}, {"home/", true, 0}, {"home/x -> ../etc", true, 0}}, "home/x/log", "", "another user"},
		{"the stranger's link to a file", []entry{{name: "etc"}, {"home/", true, 0}, {"home/log -> ../etc", true, 0}}, "home/log", "", "another user"},
		{"the stranger's link that leads nowhere", []entry{{"home/", true, 0}, {"home/log -> ../new", true, 0}}, "home/log", "", "another user"},
		{"root's link in the stranger's directory", []entry{{name: "etc/"}, {"home/", true, 0}, {name: "home/x -> ../etc"}}, "home/x/log", "", "another user"},
		{"root's link where all may write", []entry{{name: "etc/"}, {"d/", false, 0o777}, {name: "d/x -> ../etc"}}, "d/x/log", "", "another user"},
		{"root's link in a directory as /tmp", []entry{{name: "etc/"}, {"d/", false, 0o777 | os.ModeSticky}, {name: "d/x -> ../etc"}}, "d/x/log", "etc/log", ""},
		{"the stranger's link in a directory as /tmp", []entry{{name: "etc/"}, {"d/", false, 0o777 | os.ModeSticky}, {"d/x -> ../etc", true, 0}}, "d/x/log", "", "another user"},
		{"behind root's link", []entry{{name: "a -> home"}, {"home/", true, 0}, {name: "etc/"}, {"home/x -> ../etc", true, 0}}, "a/x/log", "", "another user"},
		{"a circle", []entry{{name: "a -> b"}, {name: "b -> a"}}, "a/log", "", "too many"},
		{"no such directory", nil, "d/log", "", "no such file"},
		{"a directory for a file", []entry{{name: "d/"}}, "d/", "", "is a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := tree(t, tt.entries)
			fd, err := Open(dir+"/"+tt.path, Options{Flags: unix.O_WRONLY | unix.O_TRUNC, Guarded: true})
			if tt.file == "" {
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error %v, want %q", err, tt.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			unix.Write(fd, []byte("new"))
			if b, err := os.ReadFile(filepath.Join(dir, tt.file)); string(b) != "new" {
				t.Errorf("%s holds %q, %v", tt.file, b, err)
			}
		})
	}
}

// TestSecondName: a file of root's under another name is not written, nor emptied.
func TestSecondName(t *testing.T) {
	dir := tree(t, []entry{{name: "secret"}, {"home/", true, 0}})
	if err := os.Link(dir+"/secret", dir+"/home/log"); err != nil {
		t.Skip(err)
	}
	_, err := Open(dir+"/home/log", Options{Flags: unix.O_WRONLY | unix.O_TRUNC, Guarded: true})
	if b, _ := os.ReadFile(dir + "/secret"); err == nil || string(b) != "old" {
		t.Errorf("error %v, the file holds %q", err, b)
	}
}

// TestUnguarded follows any link: it is the caller's own.
func TestUnguarded(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("real", dir+"/log"); err != nil {
		t.Fatal(err)
	}
	fd, err := Open(dir+"/log", Options{Flags: unix.O_WRONLY})
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if st, err := os.Stat(dir + "/real"); err != nil || st.Mode().Perm() != mode {
		t.Errorf("%v, %v", st, err)
	}
}

// TestOpenFiles: names of what is open already.
func TestOpenFiles(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, guarded := range []bool{false, true} {
		for _, path := range []string{fmt.Sprintf("/proc/self/fd/%d", f.Fd()), fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()),
			fmt.Sprintf("/dev/fd/%d", f.Fd()), "/dev/null"} {
			fd, err := Open(path, Options{Flags: unix.O_WRONLY | unix.O_TRUNC, Guarded: guarded})
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			unix.Close(fd)
		}
	}
}

// TestFIFO waits for a reader, and says so once.
func TestFIFO(t *testing.T) {
	path := t.TempDir() + "/fifo"
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Flags: unix.O_WRONLY | unix.O_NONBLOCK}); !errors.Is(err, unix.ENXIO) {
		t.Errorf("without waiting: %v", err)
	}
	told := 0
	reader := make(chan int, 1)
	fd, err := Open(path, Options{Flags: unix.O_WRONLY | unix.O_TRUNC, Waiting: func() {
		told++
		time.AfterFunc(3*retry, func() {
			r, _ := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			reader <- r
		})
	}})
	if err != nil || told != 1 {
		t.Fatalf("%v, told %d times", err, told)
	}
	unix.Close(fd)
	unix.Close(<-reader)
}
