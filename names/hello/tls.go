// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"encoding/binary"

	"aldente/ipc"
)

// Numbers of TLS, RFC 8446 sections 4 and 5.1.
const (
	recordHandshake = 22
	clientHello     = 1
	recordHeader    = 5
	maxRecord       = 1 << 14 // bytes of a record in plain
	majorVersion    = 3       // of SSL 3.0 and all TLS
)

// TLS reads the beginning of a TCP connection, in pieces of any size. The hello may be
// divided over records, and records over pieces, anywhere. The zero value is ready.
type TLS struct {
	msg   message
	head  [recordHeader]byte // of the record that comes next
	heads int                // bytes of it that are there
	left  int                // bytes of the record that are still to come
	total int                // bytes that were read
	found uint8
}

// Read takes the next bytes of the connection, and returns what they are the
// beginning of: one of ipc.Found*, or zero as long as that is not known. Once it is
// known it stays. What follows the hello in other records is not looked at.
func (t *TLS) Read(b []byte) uint8 {
	for len(b) > 0 && t.found == more {
		if t.total == ipc.MaxStaged {
			t.found = ipc.FoundTooLong
			break
		}
		n := t.step(b[:min(len(b), ipc.MaxStaged-t.total)])
		b = b[n:]
		t.total += n
	}
	return t.found
}

// Name is the server's name, in lower case, once ipc.FoundName was returned.
func (t *TLS) Name() string { return string(t.msg.name) }

// step takes as much of b as belongs together, at least a byte.
func (t *TLS) step(b []byte) (n int) {
	if t.left == 0 {
		n = copy(t.head[t.heads:], b)
		t.heads += n
		t.found = t.record()
		return n
	}
	n = min(t.left, len(b))
	if len(t.msg.buf)+n > maxHello {
		t.found = ipc.FoundTooLong
		return n
	}
	t.msg.buf = append(t.msg.buf, b[:n]...)
	if t.left -= n; t.left > 0 {
		// A record ends where it says. Only then it is known what else is in it.
		_, t.found = t.msg.length()
		return n
	}
	t.found = t.msg.read()
	return n
}

// record looks at as much of a record's header as there is.
func (t *TLS) record() uint8 {
	h := t.head[:t.heads]
	if h[0] != recordHandshake || len(h) > 1 && h[1] != majorVersion || len(h) > 2 && h[2] > 4 {
		return ipc.FoundNotHello
	}
	if len(h) < recordHeader {
		return more
	}
	t.heads = 0
	if t.left = int(binary.BigEndian.Uint16(h[3:])); t.left == 0 || t.left > maxRecord {
		return ipc.FoundNotHello
	}
	return more
}

// serverName reads a client hello behind its header, RFC 8446 section 4.1.2.
func serverName(b []byte) (name []byte, found uint8) {
	r := reader{b: b}
	if v := r.take(2); r.bad || v[0] != majorVersion {
		return nil, ipc.FoundNotHello
	}
	r.take(32) // random
	session := r.vector8()
	suites := r.vector16()
	methods := r.vector8()
	if r.bad || len(session) > 32 || len(suites) < 2 || len(suites)%2 != 0 || len(methods) == 0 {
		return nil, ipc.FoundNotHello
	}
	if len(r.b) == 0 {
		return nil, ipc.FoundNoName // as before TLS had extensions
	}
	extensions := reader{b: r.vector16()}
	if r.bad || len(r.b) != 0 {
		return nil, ipc.FoundNotHello
	}
	found = ipc.FoundNoName
	for len(extensions.b) > 0 {
		kind := extensions.uint16()
		body := extensions.vector16()
		if extensions.bad {
			return nil, ipc.FoundNotHello
		}
		if kind != 0 { // server_name
			continue
		}
		if found != ipc.FoundNoName {
			return nil, ipc.FoundNotHello // each extension once, RFC 8446 section 4.2
		}
		if name, found = hostName(body); found == ipc.FoundNotHello {
			return nil, found
		}
	}
	return name, found
}

// hostName reads the extension server_name, RFC 6066 section 3.
func hostName(b []byte) (name []byte, found uint8) {
	r := reader{b: b}
	list := reader{b: r.vector16()}
	if r.bad || len(r.b) != 0 || len(list.b) == 0 {
		return nil, ipc.FoundNotHello
	}
	kind := list.take(1)
	host := list.vector16()
	switch {
	case list.bad:
		return nil, ipc.FoundNotHello
	case len(list.b) != 0 || kind[0] != 0: // one name, and that of a host
		return nil, ipc.FoundBadName
	}
	return hostNameOf(host)
}

// hostNameOf returns a host's name in lower case: letters, digits, hyphens and
// underscores in labels (RFC 1123 section 2.1), no address, no dot in the end.
func hostNameOf(host []byte) (name []byte, found uint8) {
	if len(host) == 0 || len(host) > MaxName {
		return nil, ipc.FoundBadName
	}
	name = make([]byte, len(host))
	start, digits := 0, true // of the label
	for i, c := range host {
		switch {
		case c == '.':
			if i == start || i-start > 63 {
				return nil, ipc.FoundBadName
			}
			start, digits = i+1, true
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
			digits = false
		case 'a' <= c && c <= 'z', c == '-', c == '_':
			digits = false
		case c < '0' || c > '9':
			return nil, ipc.FoundBadName
		}
		name[i] = c
	}
	if n := len(host) - start; n == 0 || n > 63 || digits { // who ends with a number is an address
		return nil, ipc.FoundBadName
	}
	return name, ipc.FoundName
}
