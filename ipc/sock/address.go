// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// sizeofPath is that of sun_path, include/uapi/linux/un.h.
const sizeofPath = 108

// address returns what the kernel calls an address, struct sockaddr_in and its kin:
// the family in the host's order, a port in the network's. nil is no address.
func address(sa unix.Sockaddr) ([]byte, error) {
	family := func(f uint16, size int) []byte {
		return binary.NativeEndian.AppendUint16(make([]byte, 0, size), f)
	}
	switch a := sa.(type) {
	case nil:
		return nil, nil
	case *unix.SockaddrInet4:
		if a.Port < 0 || a.Port > 0xffff {
			return nil, unix.EINVAL
		}
		b := binary.BigEndian.AppendUint16(family(unix.AF_INET, unix.SizeofSockaddrInet4), uint16(a.Port))
		return append(append(b, a.Addr[:]...), make([]byte, 8)...), nil
	case *unix.SockaddrInet6:
		if a.Port < 0 || a.Port > 0xffff {
			return nil, unix.EINVAL
		}
		b := binary.BigEndian.AppendUint16(family(unix.AF_INET6, unix.SizeofSockaddrInet6), uint16(a.Port))
		b = append(append(b, 0, 0, 0, 0), a.Addr[:]...) // no flow label
		return binary.NativeEndian.AppendUint32(b, a.ZoneId), nil
	case *unix.SockaddrNetlink:
		b := append(family(unix.AF_NETLINK, unix.SizeofSockaddrNetlink), 0, 0)
		return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(b, a.Pid), a.Groups), nil
	case *unix.SockaddrUnix:
		return path(family(unix.AF_UNIX, unix.SizeofSockaddrUnix), a.Name)
	}
	return nil, unix.EAFNOSUPPORT
}

// path appends the name of a unix socket. One in the file system ends with a zero,
// an abstract one, which begins with a zero or is written with @, does not.
func path(b []byte, name string) ([]byte, error) {
	switch {
	case len(name) >= sizeofPath:
		return nil, unix.EINVAL
	case name == "":
		return b, nil
	case name[0] == '@' || name[0] == 0:
		return append(append(b, 0), name[1:]...), nil
	}
	return append(append(b, name...), 0), nil
}

// parse returns the address that the kernel has written, nil if it has written none
// or one of another family.
func parse(b []byte) unix.Sockaddr {
	if len(b) < 2 {
		return nil
	}
	family := binary.NativeEndian.Uint16(b)
	switch {
	case family == unix.AF_INET && len(b) >= unix.SizeofSockaddrInet4:
		return &unix.SockaddrInet4{Port: int(binary.BigEndian.Uint16(b[2:])), Addr: [4]byte(b[4:8])}
	case family == unix.AF_INET6 && len(b) >= unix.SizeofSockaddrInet6:
		return &unix.SockaddrInet6{Port: int(binary.BigEndian.Uint16(b[2:])), Addr: [16]byte(b[8:24]), ZoneId: binary.NativeEndian.Uint32(b[24:])}
	case family == unix.AF_NETLINK && len(b) >= unix.SizeofSockaddrNetlink:
		return &unix.SockaddrNetlink{Family: family, Pid: binary.NativeEndian.Uint32(b[4:]), Groups: binary.NativeEndian.Uint32(b[8:])}
	case family == unix.AF_UNIX:
		name := b[2:]
		if len(name) > 0 && name[0] == 0 {
			name = append([]byte{'@'}, name[1:]...)
		}
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		return &unix.SockaddrUnix{Name: string(name)}
	}
	return nil
}
