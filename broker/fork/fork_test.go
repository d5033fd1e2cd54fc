// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// pipe returns a pipe whose read end ends with the child, once it is started.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// status waits for a child.
func status(t *testing.T, pid int, errno syscall.Errno) syscall.WaitStatus {
	t.Helper()
	if errno != 0 {
		t.Fatal(errno)
	}
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &ws, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return ws
	}
}

// finish starts a list, and returns what it reported and its exit status.
func finish(t *testing.T, l *List, r, w *os.File) (all []Report, exit int) {
	t.Helper()
	pid, errno := l.Start(0, nil)
	w.Close()
	for {
		one, err := l.Read(r)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	return all, status(t, pid, errno).ExitStatus()
}

func list(t *testing.T) (l *List, r, w *os.File) {
	t.Helper()
	r, w = pipe(t)
	return New(int(w.Fd()), 9), r, w
}

// TestErrors: which errors end a child, which are told, by what name, and where it
// goes on.
func TestErrors(t *testing.T) {
	const bad = -1
	type told struct {
		phase, call string
		errno       unix.Errno
	}
	for _, tt := range []struct {
		name string
		add  func(l *List)
		told []told
		exit int
	}{
		{"none", func(l *List) { l.Must(unix.SYS_CHDIR, "/") }, nil, 3},
		{"must", func(l *List) { l.Phase("close what is not there"); l.Must(unix.SYS_CLOSE, bad) },
			[]told{{"close what is not there", "close", unix.EBADF}}, 9},
		{"must, allowed", func(l *List) { l.Must(unix.SYS_CLOSE, bad).Allow(unix.EBADF) }, nil, 3},
		{"must, another allowed", func(l *List) { l.Must(unix.SYS_CLOSE, bad).Allow(unix.EPERM) }, []told{{"", "close", unix.EBADF}}, 9},
		{"quit", func(l *List) { l.Quit(unix.SYS_CLOSE, bad) }, nil, int(unix.EBADF)},
		{"try", func(l *List) { l.Try(unix.SYS_CLOSE, bad) }, nil, 3},
		{"note", func(l *List) {
			l.Phase("a")
			l.Note(unix.SYS_CLOSE, bad)
			l.Phase("b")
			l.Note(unix.SYS_CHDIR, "/nowhere/at/all")
		}, []told{{"a", "close", unix.EBADF}, {"b", "chdir", unix.ENOENT}}, 3},
		{"else", func(l *List) {
			end := l.Label()
			l.Try(unix.SYS_CLOSE, bad).Else(end)
			l.Exit(4)
			l.At(end)
		}, nil, 3},
		{"no else", func(l *List) {
			end := l.Label()
			l.Try(unix.SYS_CHDIR, "/").Else(end)
			l.Exit(4)
			l.At(end)
		}, nil, 4},
		{"else at the end", func(l *List) {
			end := l.Label()
			l.Note(unix.SYS_CLOSE, bad).Else(end)
			l.Exit(4)
			l.At(end)
			l.Exit(0)
		}, []told{{"", "close", unix.EBADF}}, 0},
		{"jump", func(l *List) {
			end := l.Label()
			l.Jump(end)
			l.Must(unix.SYS_CLOSE, bad)
			l.At(end)
		}, nil, 3},
		{"a call without a name", func(l *List) { l.Must(1 << 20) }, []told{{"", "system call 1048576", unix.ENOSYS}}, 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, r, w := list(t)
			tt.add(l)
			l.Exit(3)
			all, exit := finish(t, l, r, w)
			if exit != tt.exit || len(all) != len(tt.told) {
				t.Fatalf("exit status %d, %d reports, want %d, %d", exit, len(all), tt.exit, len(tt.told))
			}
			for i, want := range tt.told {
				f := all[i].Failed
				if f == nil || f.Phase != want.phase || f.Call != want.call || !errors.Is(f, want.errno) || f.Error() != want.call+": "+want.errno.Error() {
					t.Errorf("report %d is %v, want %+v", i, f, want)
				}
			}
		})
	}
}

// TestSlots: results and errors are arguments of later steps, and are told.
func TestSlots(t *testing.T) {
	const file, number Slot = 1, 2
	path := filepath.Join(t.TempDir(), "made")
	l, r, w := list(t)
	l.Must(unix.SYS_OPENAT, AtFDCWD, path, unix.O_WRONLY|unix.O_CREAT, 0o600).Into(file)
	l.Must(unix.SYS_WRITE, file, "hello", 5).Into(number)
	seven := int32(7)
	l.Tell(number, &seven)
	l.Try(unix.SYS_CLOSE, -1).ErrorInto(number)
	text := new([3]byte)
	l.Digits(number, text)
	l.Must(unix.SYS_WRITE, file, text[:], 3)
	l.Set(number, 11)
	l.Tell(number, nil)
	all, exit := finish(t, l, r, w)
	if exit != 0 || len(all) != 2 || all[0] != (Report{Result: 5, Extra: 7}) || all[1] != (Report{Result: 11}) {
		t.Errorf("exit status %d, %+v", exit, all)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "hello009" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestReportTo: reports follow their descriptor.
func TestReportTo(t *testing.T) {
	l, r, w := list(t)
	fd := int(w.Fd())
	spare, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(spare) // its number is free, in the child too
	l.Must(unix.SYS_DUP3, fd, spare, 0)
	l.ReportTo(spare)
	l.Must(unix.SYS_CLOSE, fd)
	l.Must(unix.SYS_CLOSE, -1)
	if all, exit := finish(t, l, r, w); exit != 9 || len(all) != 1 || all[0].Failed.Call != "close" {
		t.Errorf("exit status %d, %+v", exit, all)
	}
}

// TestAwait: a child goes on with a byte, and ends without.
func TestAwait(t *testing.T) {
	for _, goes := range []bool{true, false} {
		goR, goW := pipe(t)
		l, r, w := list(t)
		l.Try(unix.SYS_CLOSE, int(goW.Fd()))
		l.Await(int(goR.Fd()))
		l.Exit(5)
		pid, errno := l.Start(0, nil)
		w.Close()
		want := 0
		if goes {
			want = 5
			if _, err := goW.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		goW.Close()
		if exit := status(t, pid, errno).ExitStatus(); exit != want {
			t.Errorf("with a byte %t: exit status %d, want %d", goes, exit, want)
		}
		r.Close()
	}
}

// TestClone: a child's child works off another list; we are its parent where that is
// said, and have its pidfd.
func TestClone(t *testing.T) {
	inner := New(-1, 1)
	inner.Exit(6)
	l, r, w := list(t)
	const pid Slot = 3
	pidfd := new(int32)
	l.Clone(unix.CLONE_PARENT|unix.CLONE_PIDFD, pidfd, inner).Into(pid)
	l.Tell(pid, pidfd)
	helper, errno := l.Start(unix.CLONE_FILES, nil)
	if exit := status(t, helper, errno).ExitStatus(); exit != 0 {
		t.Errorf("exit status %d", exit)
	}
	w.Close()
	told, err := l.Read(r)
	if err != nil || told.Failed != nil || told.Result <= 0 {
		t.Fatalf("%+v, %v", told, err)
	}
	defer unix.Close(int(told.Extra))
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PIDFD, int(told.Extra), &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Errorf("pidfd: %v", err)
	}
	if exit := status(t, int(told.Result), 0).ExitStatus(); exit != 6 {
		t.Errorf("exit status of the child's child: %d", exit)
	}
}

// TestPidFD: of the child itself.
func TestPidFD(t *testing.T) {
	l := New(-1, 1)
	pidfd := new(int32)
	*pidfd = -1
	pid, errno := l.Start(unix.CLONE_PIDFD, pidfd)
	if errno != 0 {
		t.Fatal(errno)
	}
	if *pidfd < 0 {
		t.Error("none")
	}
	unix.Close(int(*pidfd))
	status(t, pid, 0)
}

// TestNest: each is the child of the one before, and the last one's status is that of
// all.
func TestNest(t *testing.T) {
	l := New(-1, 1)
	for i := range 5 {
		l.Nest(i)
	}
	l.Exit(42)
	pid, errno := l.Start(0, nil)
	if exit := status(t, pid, errno).ExitStatus(); exit != 42 {
		t.Errorf("exit status %d", exit)
	}
}

// TestSame compares what is in memory when the step's turn comes.
func TestSame(t *testing.T) {
	for _, path := range []string{"/", "/proc"} {
		a, b := new(unix.Stat_t), new(unix.Stat_t)
		l, r, w := list(t)
		other := l.Label()
		l.Must(unix.SYS_OPENAT, AtFDCWD, "/", unix.O_PATH, 0).Into(0)
		l.Must(unix.SYS_FSTAT, Slot(0), Pointer(a))
		l.Must(unix.SYS_OPENAT, AtFDCWD, path, unix.O_PATH, 0).Into(0)
		l.Must(unix.SYS_FSTAT, Slot(0), Pointer(b))
		l.Same(&a.Dev, &b.Dev).Else(other)
		l.Same(&a.Ino, &b.Ino).Else(other)
		l.Exit(1)
		l.At(other)
		l.Exit(2)
		want := 2
		if path == "/" {
			want = 1
		}
		if all, exit := finish(t, l, r, w); exit != want || len(all) != 0 {
			t.Errorf("%s: exit status %d, want %d, %+v", path, exit, want, all)
		}
	}
}

// TestCapabilities: those of a set that there are pass, and no others.
func TestCapabilities(t *testing.T) {
	const set = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_BIND_SERVICE
	data, dataW := pipe(t)
	l, r, w := list(t)
	l.PassCapabilities(set)
	l.Must(unix.SYS_CAPGET, Pointer(&l.caps.header), Pointer(&l.caps.data))
	l.Must(unix.SYS_WRITE, int(dataW.Fd()), Pointer(&l.caps.data), 24)
	l.OnlyCapabilities()
	l.Must(unix.SYS_CAPGET, Pointer(&l.caps.header), Pointer(&l.caps.data))
	l.Must(unix.SYS_WRITE, int(dataW.Fd()), Pointer(&l.caps.data), 24)
	if all, exit := finish(t, l, r, w); exit != 0 || len(all) != 0 {
		t.Fatalf("exit status %d, %+v", exit, all)
	}
	dataW.Close()
	var own [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &own[0]); err != nil {
		t.Fatal(err)
	}
	have := own[0].Permitted & set
	want := [2][2]unix.CapUserData{
		{{Effective: own[0].Permitted, Permitted: own[0].Permitted, Inheritable: have}, {Effective: own[1].Permitted, Permitted: own[1].Permitted}},
		{{Effective: have, Permitted: have, Inheritable: have}},
	}
	var got [2][2]unix.CapUserData
	if err := binary.Read(data, binary.NativeEndian, &got); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// TestChange: what each kind does to a copy of capabilities.
func TestChange(t *testing.T) {
	of := func(e, p, i uint32) (c capabilities) {
		c.data[0] = unix.CapUserData{Effective: e, Permitted: p, Inheritable: i}
		c.data[1] = unix.CapUserData{Effective: e, Permitted: p, Inheritable: i}
		return c
	}
	for _, tt := range []struct {
		name string
		op   uint8
		want [2]unix.CapUserData
	}{
		{"raise", opRaise, [2]unix.CapUserData{{Effective: 7, Permitted: 7, Inheritable: 9}, {Effective: 7, Permitted: 7, Inheritable: 9}}},
		{"pass", opPass, [2]unix.CapUserData{{Effective: 7, Permitted: 7, Inheritable: 6}, {Effective: 7, Permitted: 7}}},
		{"only", opOnly, [2]unix.CapUserData{{Effective: 9, Permitted: 9, Inheritable: 9}, {Effective: 9, Permitted: 9, Inheritable: 9}}},
	} {
		c := of(1, 7, 9)
		if change(&c, tt.op, 0xe); c.data != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, c.data, tt.want)
		}
	}
}

// TestExec: as execvp(3), and what it says if there is nothing to execute.
func TestExec(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	script := file("script", "exit $1\n", 0o755)
	headed := file("headed", "#!/bin/sh\nexit $FROM_ENV\n", 0o755)
	plain := file("plain", "exit 1\n", 0o644)
	missing := filepath.Join(dir, "missing")
	for _, tt := range []struct {
		name       string
		candidates []string
		exit       int
		errno      unix.Errno // zero: it is executed
	}{
		{"the first that is there", []string{missing, headed, script}, 8, 0},
		{"below a file", []string{plain + "/x", headed}, 8, 0},
		{"without a header", []string{script}, 6, 0},
		{"may not, then another", []string{plain, headed}, 8, 0},
		{"nothing", []string{missing, missing}, 127, unix.ENOENT},
		{"no candidate", nil, 127, unix.ENOENT},
		{"may not, and nothing else", []string{plain, missing}, 9, unix.EACCES},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, r, w := list(t)
			if err := l.Exec("/bin/sh", tt.candidates, []string{"x", "6"}, []string{"FROM_ENV=8"}, 127); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.FcntlInt(w.Fd(), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			all, exit := finish(t, l, r, w)
			if exit != tt.exit || (len(all) == 0) != (tt.errno == 0) || len(all) > 0 && (!errors.Is(all[0].Failed, tt.errno) || all[0].Failed.Call != "execve") {
				t.Errorf("exit status %d, %+v, want %d, %v", exit, all, tt.exit, tt.errno)
			}
		})
	}
	for _, bad := range []func(l *List) error{
		func(l *List) error { return l.Exec("/bin/sh", nil, []string{"a\x00"}, nil, 1) },
		func(l *List) error { return l.Exec("/bin/sh", nil, []string{"a"}, []string{"b\x00"}, 1) },
		func(l *List) error { return l.Exec("/bin/sh", []string{"c\x00"}, []string{"a"}, nil, 1) },
	} {
		if bad(New(-1, 1)) == nil {
			t.Error("a NUL byte is accepted")
		}
	}
}

// TestMute: a list that nobody reads goes its way.
func TestMute(t *testing.T) {
	l := New(-1, 4)
	l.Note(unix.SYS_CLOSE, -1)
	l.Must(unix.SYS_CLOSE, -1)
	pid, errno := l.Start(0, nil)
	if exit := status(t, pid, errno).ExitStatus(); exit != 4 {
		t.Errorf("exit status %d", exit)
	}
}

// TestMistakes: lists that lead nowhere, and reports of no step.
func TestMistakes(t *testing.T) {
	panics := func(f func()) (yes bool) {
		defer func() { yes = recover() != nil }()
		f()
		return false
	}
	if !panics(func() { l := New(-1, 1); l.Jump(l.Label()); l.close() }) {
		t.Error("a label that is nowhere")
	}
	if !panics(func() { New(-1, 1).Must(unix.SYS_CLOSE, 1.5) }) {
		t.Error("an argument that is none")
	}
	l := New(-1, 1)
	for _, step := range []int32{-1, 0, 1 << 20} {
		var b bytes.Buffer
		if err := binary.Write(&b, binary.NativeEndian, [4]int32{step}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Read(&b); !errors.Is(err, unix.EPROTO) {
			t.Errorf("step %d of none: %v", step, err)
		}
	}
	if _, err := l.Read(bytes.NewReader(make([]byte, RecordSize-1))); err != io.ErrUnexpectedEOF {
		t.Errorf("half a report: %v", err)
	}
}
