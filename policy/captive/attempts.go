// SPDX-License-Identifier: Apache-2.0

//go:build captive

package captive

import (
	"crypto/rand"
	"errors"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Held are descriptors of the classes that a process holds, -1 for those that it
// does not. Attempts use them.
type Held struct {
	Link     int // the guest's link: a tap
	Listener int // TCP, listening
	Datagram int // UDP, bound and not connected
	Flow     int // UDP, connected
	Stream   int // TCP, connected
	Echo     int // ping socket, connected
	Capture  int // regular file
	Live     int // pipe, to write to
	Channel  int // to another process
	Log      int // pipe
	User     int // user namespace of the worker
	Mount    int // mount namespace of the worker
}

// Nothing is Held by a process that has no descriptor to try with.
func Nothing() Held { return Held{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1} }

// Try makes the attempt and returns how it ended, if it came back: "succeeded",
// the name of an error number, or another text.
func Try(name string, h Held) string {
	do, ok := find(name)
	if !ok {
		return "no such attempt"
	}
	err := do(h)
	var errno syscall.Errno
	switch {
	case err == nil:
		return "succeeded"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// attempts are what captured code might try. Each makes its call as that would:
// raw, past the checks of libraries.
type attempts map[string]func(Held) error

// find looks an attempt up by its name.
func find(name string) (func(Held) error, bool) {
	for _, m := range []attempts{harmless, files, sockets, memory, processes, kernel, behind, ofWorker} {
		if do, ok := m[name]; ok {
			return do, true
		}
	}
	return nil, false
}

// harmless is what the runtime does of its own accord, and what must be
// survived.
var harmless = attempts{
	"nothing":    func(Held) error { return nil },
	"collect":    collect,
	"threads":    threads,
	"deep-stack": deepStack,
	"random":     random,
	"panic":      func(Held) error { panic("captive panics") },
	"nil-deref":  func(Held) error { return *(*error)(nilPointer()) },
	"exit-3":     func(Held) error { unix.Exit(3); return nil },
	"say-escape": func(Held) error {
		_, err := unix.Write(2, []byte("<4>\x1b[2Jcleared\n"))
		return err
	},
}

// behind is what takes several steps, to see the layers behind a filter.
var behind = attempts{
	"tcp-connect-out": tcpConnectOut,
	"udp-send-out":    udpSendOut,
	"read-caps":       readCaps,
}

// mask is -1 as the kernel sees it in a register.
const mask = ^uintptr(0)

const atCwd = ^uintptr(-unix.AT_FDCWD - 1)

func call(nr uintptr, args ...uintptr) func(Held) error {
	return func(Held) error { return raw(nr, args...) }
}

func withHeld(args func(Held) []uintptr) func(Held) error {
	return func(h Held) error {
		a := args(h)
		return raw(a[0], a[1:]...)
	}
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// kept holds what raw calls point to, as unsafe pointers do not.
var kept []any

func addr[T any](p *T) uintptr {
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

func cstr(s string) uintptr {
	b := append([]byte(s), 0)
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// loopback is struct sockaddr_in of 127.0.0.1:9.
func loopback() *[16]byte {
	return &[16]byte{unix.AF_INET, 0, 0, 9, 127, 0, 0, 1}
}

// aimed is a struct mmsghdr with an address and one byte of payload.
func aimed() *unix.Msghdr {
	to := loopback()
	iov := &unix.Iovec{Base: &[]byte{1}[0], Len: 1}
	m := &struct {
		hdr unix.Msghdr
		len uint64
	}{hdr: unix.Msghdr{Name: &to[0], Namelen: 16, Iov: iov, Iovlen: 1}}
	kept = append(kept, to, iov, m)
	return &m.hdr
}

func nilPointer() unsafe.Pointer { return nil }

// collect makes garbage, collects it and gives the pages back, which is what
// the memory limit does when something leaks.
func collect(Held) error {
	var keep [][]byte
	for i := range 2000 {
		keep = append(keep, make([]byte, 16<<10))
		if i%100 == 0 {
			keep = nil
		}
	}
	runtime.GC()
	debug.FreeOSMemory()
	debug.SetGCPercent(10)
	for range 2000 {
		keep = append(keep[:0], make([]byte, 64<<10))
	}
	debug.SetGCPercent(-1)
	return nil
}

func random(Held) error {
	var b [64]byte
	_, err := rand.Read(b[:])
	if err == nil && b == ([64]byte{}) {
		return errors.New("zeros")
	}
	return err
}

// threads has the runtime make some.
func threads(Held) error {
	done := make(chan error)
	for range 4 {
		go func() {
			runtime.LockOSThread()
			var b [1]byte
			_, err := unix.Read(-1, b[:])
			if err == unix.EBADF {
				err = nil
			}
			done <- err // and the thread ends with the goroutine
		}()
	}
	var err error
	for range 4 {
		err = errors.Join(err, <-done)
	}
	return err
}

func deepStack(Held) error {
	var grow func(n int) int
	grow = func(n int) int {
		var pad [256]byte
		if n == 0 {
			return int(pad[0])
		}
		return grow(n-1) + int(pad[n%256])
	}
	if grow(20000) != 0 {
		return errors.New("stack")
	}
	return nil
}

func mprotectExec(Held) error {
	p, _, errno := unix.RawSyscall6(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0)
	if errno != 0 {
		return errors.New("mmap failed: " + errno.Error())
	}
	return raw(unix.SYS_MPROTECT, p, 4096, unix.PROT_READ|unix.PROT_EXEC)
}

// tcpConnectOut is what Landlock has to stop if the filter did not.
func tcpConnectOut(Held) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
}

// udpSendOut is what the empty network namespace has to stop.
func udpSendOut(Held) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
}

func readCaps(Held) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	if data != ([2]unix.CapUserData{}) {
		return errors.New("has capabilities")
	}
	return nil
}
