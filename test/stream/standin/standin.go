// SPDX-License-Identifier: Apache-2.0

// Package standin joins a tap to QEMU's stream socket, in QEMU's place: the
// kernel of a network namespace is the guest. It takes many frames at a time,
// to be faster than what is measured or tested with it.
package standin

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/test/merge"
	"aldente/worker/packet"
)

// arg as first argument makes the binary the stand-in: descriptor of a tap,
// path of the stream socket or number of its descriptor, MTU of the guest for a
// fast one or 0.
const arg = "stream-stand-in"

// Main is to be called first by every program that uses Start: it runs the
// stand-in, and does not return, if the program was started as such.
func Main() {
	if len(os.Args) != 5 || os.Args[1] != arg && os.Args[1] != krunArg {
		return
	}
	err := error(nil)
	if os.Args[1] == krunArg {
		err = krun(os.Args[2:])
	} else {
		err = run(os.Args[2], os.Args[3], os.Args[4])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Interface is the name of the guest's network card.
const Interface = "eth0"

// Process is a stand-in at work.
type Process struct{ cmd *exec.Cmd }

// Start makes a network card in the caller's network namespace, down and
// without addresses, and joins it to the stream socket at path. A socket that
// is not there yet is waited for. The guest's kernel cuts its segments, and
// computes and verifies all checksums, by itself.
func Start(path string) (*Process, error) { return start(path, nil, 0) }

// StartOn is Start for a stream socket that the caller has connected, for whose
// client it is taken then.
func StartOn(stream *os.File) (*Process, error) { return start("4", stream, 0) }

// StartFast is Start for measurements: the stand-in does the guest's kernel's
// part of that work, and puts segments together as a network card's driver
// does. The stream is the same. mtu is that of the guest.
func StartFast(path string, mtu int) (*Process, error) { return start(path, nil, mtu) }

func start(path string, stream *os.File, mtu int) (*Process, error) {
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if mtu > 0 {
		flags = tapFlags
	}
	tap, err := openTap(flags)
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	cmd := exec.Command("/proc/self/exe", arg, "3", path, strconv.Itoa(mtu))
	cmd.ExtraFiles = []*os.File{tap}
	if stream != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, stream)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("stand-in: %w", err)
	}
	return &Process{cmd}, nil
}

// PID returns the stand-in's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the stand-in.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the stand-in and waits for its end; the network card goes with it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

const (
	prefixLen = 4
	maxFrame  = 65535
	// upBatch is how much is read from the tap before it is written to the
	// stream, downBatch how much is read from the stream at once.
	upBatch   = 512 << 10
	downBatch = 512 << 10
)

// run copies frames both ways until the stream ends.
func run(tapFD, path, fast string) error {
	tap, err := strconv.Atoi(tapFD)
	if err != nil {
		return err
	}
	mtu, err := strconv.Atoi(fast)
	if err != nil {
		return err
	}
	stream, err := strconv.Atoi(path)
	if err != nil {
		stream, err = dial(path)
	}
	if err != nil {
		return err
	}
	// Blocking raw system calls and garbage collection do not go together;
	// nothing is allocated from here on.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(4)
	ended := make(chan error, 2)
	if mtu > 0 {
		if err := unix.SetNonblock(stream, true); err != nil {
			return err
		}
		go func() { ended <- fastUpward(tap, stream, mtu) }()
		m := merge.New(tap, packet.OffloadSize)
		take := func(frame []byte) { m.Take(frame, false) }
		go func() { ended <- downward(stream, take, m.Flush) }()
	} else {
		go func() { ended <- upward(tap, stream) }()
		// A frame that the tap refuses is a lost one.
		write := func(frame []byte) { _, _ = call(unix.SYS_WRITE, tap, frame) }
		go func() { ended <- downward(stream, write, func() {}) }()
	}
	return <-ended
}

func dial(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	for range 200 { // the translator may have bound it, and not listen yet
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != unix.ENOENT && err != unix.ECONNREFUSED {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return -1, fmt.Errorf("connect to %s: %w", path, err)
	}
	return fd, nil
}

// upward gathers what the guest has sent, each frame behind its length, and
// writes it with one call.
func upward(tap, stream int) error {
	runtime.LockOSThread()
	b := make([]byte, upBatch)
	for {
		end := 0
		for len(b)-end >= prefixLen+maxFrame {
			n, err := call(unix.SYS_READ, tap, b[end+prefixLen:end+prefixLen+maxFrame])
			if err == unix.EAGAIN {
				break
			}
			if err != 0 {
				return fmt.Errorf("tap: %w", err)
			}
			binary.BigEndian.PutUint32(b[end:], uint32(n))
			end += prefixLen + n
		}
		if end == 0 {
			wait(tap, unix.POLLIN)
			continue
		}
		for rest := b[:end]; len(rest) > 0; {
			n, err := call(unix.SYS_WRITE, stream, rest)
			if err != 0 && err != unix.EINTR {
				return fmt.Errorf("stream: %w", err)
			}
			rest = rest[n:]
		}
	}
}

// downward gives each frame of the stream to take, and calls flush when there
// are no more for now.
func downward(stream int, take func([]byte), flush func()) error {
	runtime.LockOSThread()
	b := make([]byte, downBatch)
	have := 0
	for {
		n, err := call(unix.SYS_READ, stream, b[have:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			wait(stream, unix.POLLIN)
			continue
		case err != 0:
			return fmt.Errorf("stream: %w", err)
		case n == 0:
			return nil
		}
		have += n
		rest := b[:have]
		for len(rest) >= prefixLen {
			size := prefixLen + int(binary.BigEndian.Uint32(rest))
			if size > prefixLen+maxFrame {
				return fmt.Errorf("stream: frame of %d bytes", size-prefixLen)
			}
			if len(rest) < size {
				break
			}
			take(rest[prefixLen:size])
			rest = rest[size:]
		}
		flush()
		have = copy(b, rest)
	}
}

// call is a read or write that the scheduler is not told of.
func call(trap uintptr, fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// openTap makes the guest's network card.
func openTap(flags uint16) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	r, err := unix.NewIfreq(Interface)
	if err == nil {
		r.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil && flags&unix.IFF_VNET_HDR != 0 {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tapOffload)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	return f, nil
}
