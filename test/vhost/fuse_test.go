// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	fe "aldente/test/vhost/frontend"
)

// Requests of FUSE, include/uapi/linux/fuse.h.
const (
	fuseLookup  = 1
	fuseForget  = 2
	fuseGetattr = 3
	fuseOpen    = 14
	fuseFlush   = 25
	fuseInit    = 26
)

// fuseServer has a file that can be opened, and answers nothing else.
type fuseServer struct {
	dev   int
	quiet chan struct{} // closed: nothing is answered any more
}

// blockingFile returns a file whose size, contents and file system are told by
// somebody who does not answer.
func blockingFile(t *testing.T) (fd int) {
	t.Helper()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("/dev/fuse: %v", err)
	}
	s := &fuseServer{dev, make(chan struct{})}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	type result struct {
		fd  int
		err error
	}
	opened := make(chan result)
	go func() {
		// Ends with its thread, and the mounts with that.
		runtime.LockOSThread()
		fd, err := s.open(dir)
		opened <- result{fd, err}
	}()
	r := <-opened
	if r.err != nil {
		unix.Close(dev)
		t.Skipf("no FUSE here: %v", r.err)
	}
	close(s.quiet)
	t.Cleanup(func() {
		unix.Close(dev) // all who wait for an answer get an error
		unix.Close(r.fd)
	})
	return r.fd
}

func (s *fuseServer) open(dir string) (int, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return -1, err
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return -1, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", s.dev)
	if err := unix.Mount("aldente-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return -1, err
	}
	go s.serve()
	path := filepath.Join(dir, "file")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		// The kernel learns that closing need not be told. Otherwise a process that
		// ends with the file and its server in it would wait for itself.
		unix.Close(fd)
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	return fd, err
}

// serve answers until it is to be quiet, and reads on.
func (s *fuseServer) serve() {
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(s.dev, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		select {
		case <-s.quiet:
			continue
		default:
		}
		op, unique, node := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
		if op != fuseForget {
			s.answer(unique, op, body(op, node))
		}
	}
}

func (s *fuseServer) answer(unique uint64, op uint32, body []byte) {
	out := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	refused := int32(0)
	if op == fuseFlush {
		refused = -int32(unix.ENOSYS)
	}
	out = binary.NativeEndian.AppendUint32(out, uint32(refused))
	out = append(binary.NativeEndian.AppendUint64(out, unique), body...)
	_, _ = unix.Write(s.dev, out)
}

// body is the answer to a request.
func body(op uint32, node uint64) (b []byte) {
	u64 := func(v ...uint64) {
		for _, n := range v {
			b = binary.NativeEndian.AppendUint64(b, n)
		}
	}
	u32 := func(v ...uint32) {
		for _, n := range v {
			b = binary.NativeEndian.AppendUint32(b, n)
		}
	}
	attr := func(ino, size uint64, mode uint32) {
		u64(ino, size, 1, 0, 0, 0)
		u32(0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
	}
	switch op {
	case fuseInit:
		u32(7, 31, 0, 0, 16|12<<16, 1<<16, 1)
		b = append(b, make([]byte, 36)...)
	case fuseLookup:
		u64(2, 0, 60, 0)
		u32(0, 0)
		attr(2, 1<<20, unix.S_IFREG|0o666)
	case fuseGetattr:
		u64(0)
		u32(0, 0)
		if node == 1 {
			attr(1, 0, unix.S_IFDIR|0o755)
		} else {
			attr(2, 1<<20, unix.S_IFREG|0o666)
		}
	case fuseOpen:
		u64(1)
		u32(0, 0)
	}
	return b
}

// TestFileThatBlocks gives a file for memory, logs and events whose server does not
// answer. Whatever becomes of the connection, the next one is served, at once.
func TestFileThatBlocks(t *testing.T) {
	machine.NeedOurs(t)
	fd := blockingFile(t)
	v := newVictim(t)
	for _, a := range []attack{
		{name: "memory", req: fe.SetMemTable, load: slices.Concat(fe.U32s(1, 0), fe.DescribeRegion(0, 1<<20, 1<<40, 0))},
		{name: "slot", req: fe.AddMemReg, load: slices.Concat(fe.U64(0), fe.DescribeRegion(0, 1<<20, 1<<40, 0))},
		{name: "log", req: fe.SetLogBase, load: slices.Concat(fe.U64(1<<20), fe.U64(0))},
		{name: "in flight", req: fe.SetInflightFD, load: slices.Concat(fe.U64(1<<20), fe.U64(0), []byte{2, 0, 0, 1})},
		{name: "kick", req: fe.SetVringKick, load: fe.U64(0)},
		{name: "call", req: fe.SetVringCall, load: fe.U64(0)},
		{name: "error", req: fe.SetVringErr, load: fe.U64(0)},
		{name: "with a request that takes none", req: fe.GetFeatures},
	} {
		t.Run(a.name, func(t *testing.T) {
			f := v.connect(t, small)
			if err := f.Send(a.req, fe.FlagNeedReply, a.load, fd); err != nil {
				t.Fatal(err)
			}
			f.Timeout = 5 * time.Second
			_, _ = f.Receive()
			f.Close()
			begin := time.Now()
			v.nextWorks(t)
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("the next front-end waited for %v", took)
			}
			v.unharmed(t)
		})
	}
}

// TestFileBlocks makes sure that the file does what TestFileThatBlocks is about.
func TestFileBlocks(t *testing.T) {
	fd := blockingFile(t)
	done := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		done <- unix.Fstat(fd, &st)
	}()
	select {
	case err := <-done:
		t.Errorf("fstat returns at once: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
}
