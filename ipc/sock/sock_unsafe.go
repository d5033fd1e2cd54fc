// SPDX-License-Identifier: Apache-2.0

// Package sock makes the system calls of sockets, each by its own number, with the
// arguments that golang.org/x/sys/unix has for it.
//
// x/sys makes all of them by socketcall(2) on s390x, with the arguments in memory, where
// no seccomp filter sees them: a list that permits it permits every kind of socket.
// Linux has had numbers for each since 4.3 there. So that all architectures are
// treated, and tested, alike, it is this package everywhere.
//
// Calls that cannot wait are made without a word to Go's scheduler, which would wake its
// monitor where that sleeps: once for each connection that a guest makes.
package sock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sizeofAddress is that of struct sockaddr_storage, which holds any address.
const sizeofAddress = 128

// result is what a call without one returns.
func result(e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

// Socket is socket(2).
func Socket(domain, typ, proto int) (int, error) {
	r, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(domain), uintptr(typ), uintptr(proto))
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}

// Listen is listen(2).
func Listen(fd, backlog int) error {
	_, _, e := unix.RawSyscall(unix.SYS_LISTEN, uintptr(fd), uintptr(backlog), 0)
	return result(e)
}

// Shutdown is shutdown(2).
func Shutdown(fd, how int) error {
	_, _, e := unix.Syscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
	return result(e)
}

// Socketpair is socketpair(2).
func Socketpair(domain, typ, proto int) (fds [2]int, err error) {
	var p [2]int32
	_, _, e := unix.RawSyscall6(unix.SYS_SOCKETPAIR, uintptr(domain), uintptr(typ), uintptr(proto), uintptr(unsafe.Pointer(&p)), 0, 0)
	if e != 0 {
		return fds, e
	}
	return [2]int{int(p[0]), int(p[1])}, nil
}

// Bind is bind(2).
func Bind(fd int, sa unix.Sockaddr) error { return named(unix.SYS_BIND, fd, sa) }

// Connect is connect(2). A socket of the internet must not block.
func Connect(fd int, sa unix.Sockaddr) error { return named(unix.SYS_CONNECT, fd, sa) }

func named(nr uintptr, fd int, sa unix.Sockaddr) error {
	b, err := address(sa)
	if err != nil {
		return err
	}
	if _, ok := sa.(*unix.SockaddrUnix); ok { // a file system, or a listener with many clients: it may wait
		_, _, e := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		return result(e)
	}
	_, _, e := unix.RawSyscall(nr, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return result(e)
}

// Accept4 is accept4(2), with the peer's address.
func Accept4(fd, flags int) (int, unix.Sockaddr, error) {
	var b [sizeofAddress]byte
	n := uint32(len(b))
	r, _, e := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n)), uintptr(flags), 0, 0)
	if e != 0 {
		return -1, nil, e
	}
	return int(r), parse(b[:min(int(n), len(b))]), nil
}

// Getsockname is getsockname(2).
func Getsockname(fd int) (unix.Sockaddr, error) { return name(unix.SYS_GETSOCKNAME, fd) }

// Getpeername is getpeername(2).
func Getpeername(fd int) (unix.Sockaddr, error) { return name(unix.SYS_GETPEERNAME, fd) }

func name(nr uintptr, fd int) (unix.Sockaddr, error) {
	var b [sizeofAddress]byte
	n := uint32(len(b))
	if _, _, e := unix.RawSyscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n))); e != 0 {
		return nil, e
	}
	sa := parse(b[:min(int(n), len(b))])
	if sa == nil {
		return nil, unix.EAFNOSUPPORT
	}
	return sa, nil
}

func set(fd, level, name int, value unsafe.Pointer, size uintptr) error {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), size, 0)
	return result(e)
}

// get returns how much the kernel has written.
func get(fd, level, name int, value unsafe.Pointer, size uint32) (uint32, error) {
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return 0, e
	}
	return size, nil
}

// SetsockoptInt is setsockopt(2) with an int.
func SetsockoptInt(fd, level, name, value int) error {
	v := int32(value)
	return set(fd, level, name, unsafe.Pointer(&v), unsafe.Sizeof(v))
}

// SetsockoptTimeval is setsockopt(2) with a struct timeval.
func SetsockoptTimeval(fd, level, name int, tv *unix.Timeval) error {
	return set(fd, level, name, unsafe.Pointer(tv), unsafe.Sizeof(*tv))
}

// SetsockoptSockFprog is setsockopt(2) with a classic BPF program.
func SetsockoptSockFprog(fd, level, name int, prog *unix.SockFprog) error {
	return set(fd, level, name, unsafe.Pointer(prog), unsafe.Sizeof(*prog))
}

// SetsockoptIPMreqn is setsockopt(2) with a group of IPv4 and an interface.
func SetsockoptIPMreqn(fd, level, name int, m *unix.IPMreqn) error {
	return set(fd, level, name, unsafe.Pointer(m), unsafe.Sizeof(*m))
}

// SetsockoptIPv6Mreq is setsockopt(2) with a group of IPv6 and an interface.
func SetsockoptIPv6Mreq(fd, level, name int, m *unix.IPv6Mreq) error {
	return set(fd, level, name, unsafe.Pointer(m), unsafe.Sizeof(*m))
}

// BindToDevice is setsockopt(2) with SO_BINDTODEVICE.
func BindToDevice(fd int, device string) error {
	return set(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, unsafe.Pointer(unsafe.StringData(device)), uintptr(len(device)))
}

// GetsockoptInt is getsockopt(2) of an int.
func GetsockoptInt(fd, level, name int) (int, error) {
	var v int32
	_, err := get(fd, level, name, unsafe.Pointer(&v), uint32(unsafe.Sizeof(v)))
	return int(v), err
}

// GetsockoptUint64 is getsockopt(2) of 64 bits.
func GetsockoptUint64(fd, level, name int) (uint64, error) {
	var v uint64
	_, err := get(fd, level, name, unsafe.Pointer(&v), uint32(unsafe.Sizeof(v)))
	return v, err
}

// GetsockoptUcred is getsockopt(2) of a struct ucred.
func GetsockoptUcred(fd, level, name int) (*unix.Ucred, error) {
	var v unix.Ucred
	if _, err := get(fd, level, name, unsafe.Pointer(&v), uint32(unsafe.Sizeof(v))); err != nil {
		return nil, err
	}
	return &v, nil
}

// GetsockoptString is getsockopt(2) of a string of up to 255 bytes, without the zero at
// its end.
func GetsockoptString(fd, level, name int) (string, error) {
	var b [256]byte
	n, err := get(fd, level, name, unsafe.Pointer(&b), uint32(len(b)))
	if err != nil {
		return "", err
	}
	return unix.ByteSliceToString(b[:min(int(n), len(b))]), nil
}

// message is a struct msghdr for one buffer and control data.
func message(v *unix.Iovec, p, oob []byte) unix.Msghdr {
	var m unix.Msghdr
	if len(p) > 0 {
		v.Base = &p[0]
		v.SetLen(len(p))
		m.Iov = v
		m.SetIovlen(1)
	}
	if len(oob) > 0 {
		m.Control = &oob[0]
		m.SetControllen(len(oob))
	}
	return m
}

// transfer is recvmsg(2) or sendmsg(2): with MSG_DONTWAIT it cannot wait.
func transfer(nr uintptr, fd int, m *unix.Msghdr, flags int) (int, unix.Errno) {
	if flags&unix.MSG_DONTWAIT != 0 {
		r, _, e := unix.RawSyscall(nr, uintptr(fd), uintptr(unsafe.Pointer(m)), uintptr(flags))
		return int(r), e
	}
	r, _, e := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(m)), uintptr(flags))
	return int(r), e
}

// Close is close(2) of what is not lingered for (SO_LINGER).
func Close(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// Write is write(2) to a socket whose other end does what is asked at once: the kernel's
// sock_diag(7).
func Write(fd int, p []byte) error {
	_, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return result(e)
}

// Recvmsg is recvmsg(2). Of a stream at least one byte has to be asked for, else nothing
// is received, no descriptor either.
func Recvmsg(fd int, p, oob []byte, flags int) (n, oobn, got int, from unix.Sockaddr, err error) {
	var b [sizeofAddress]byte
	var v unix.Iovec
	m := message(&v, p, oob)
	m.Name, m.Namelen = &b[0], uint32(len(b))
	r, e := transfer(unix.SYS_RECVMSG, fd, &m, flags)
	if e != 0 {
		return -1, 0, 0, nil, e
	}
	return r, int(m.Controllen), int(m.Flags), parse(b[:min(int(m.Namelen), len(b))]), nil
}

// Sendmsg is sendmsg(2) of the whole of p. Control data need a byte to go with on a
// stream.
func Sendmsg(fd int, p, oob []byte, to unix.Sockaddr, flags int) error {
	_, err := SendmsgN(fd, p, oob, to, flags)
	return err
}

// SendmsgN is Sendmsg and returns how much was sent.
func SendmsgN(fd int, p, oob []byte, to unix.Sockaddr, flags int) (int, error) {
	b, err := address(to)
	if err != nil {
		return 0, err
	}
	var v unix.Iovec
	m := message(&v, p, oob)
	m.Name, m.Namelen = unsafe.SliceData(b), uint32(len(b))
	r, e := transfer(unix.SYS_SENDMSG, fd, &m, flags)
	if e != 0 {
		return 0, e
	}
	return r, nil
}
