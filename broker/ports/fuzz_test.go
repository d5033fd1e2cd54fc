// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
)

// FuzzDiag reads any answer of sock_diag as package syscall does.
func FuzzDiag(f *testing.F) {
	message := func(typ uint16, seq uint32, body []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
		b = binary.NativeEndian.AppendUint16(b, typ)
		b = binary.NativeEndian.AppendUint16(b, 2)
		b = binary.NativeEndian.AppendUint32(b, seq)
		b = append(append(b, 0, 0, 0, 0), body...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	socket := make([]byte, inetDiagMsgLen)
	socket[inetDiagSport], socket[inetDiagSport+1] = 0x1f, 0x90
	some := append(message(sockDiagByFamily, 1, socket), message(sockDiagByFamily, 1, append(socket, 8, 0, 1, 0, 1, 2, 3, 4))...)
	for _, b := range [][]byte{some, message(sockDiagByFamily, 1, socket[:70]), message(sockDiagByFamily, 9, socket),
		append(bytes.Clone(some), message(unix.NLMSG_DONE, 1, make([]byte, 4))...), message(unix.NLMSG_ERROR, 1, []byte{0xfe, 0xff, 0xff, 0xff}),
		message(unix.NLMSG_ERROR, 1, nil), message(unix.NLMSG_NOOP, 1, nil), some[:100], {15, 0, 0, 0}} {
		fuzz.Add(f, b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		var got, want Set
		s := Scanner{seq: 1}
		done, err := s.take(b, &got)
		all, bad := parseMessages(b)
		ended, status := false, error(nil)
		for _, m := range all {
			if m.Header.Seq != 1 {
				continue
			}
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				ended = true
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				ended, status = true, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			case m.Header.Type == sockDiagByFamily && len(m.Data) >= inetDiagMsgLen &&
				m.Data[1] == stateClose && binary.NativeEndian.Uint32(m.Data[40:]) == 1: // of loopback's interface
			case m.Header.Type == sockDiagByFamily && len(m.Data) >= inetDiagMsgLen:
				want.Add(binary.BigEndian.Uint16(m.Data[inetDiagSport:]))
			}
			if ended {
				break
			}
		}
		if bad && !ended {
			ended, status = true, unix.EBADMSG
		}
		if got != want || done != ended || err != status {
			t.Fatalf("done %v, %v; package syscall: %v, %v\n%x", done, err, ended, status, b)
		}
		n := 0
		for p := range got.All() {
			if n++; !want.Has(p) {
				t.Fatalf("port %d", p)
			}
		}
	})
}

// parseMessages is syscall.ParseNetlinkMessage, message by message, so that those
// before a malformed one count.
func parseMessages(b []byte) (all []syscall.NetlinkMessage, malformed bool) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := binary.NativeEndian.Uint32(b)
		end := min((uint64(n)+3)&^3, uint64(len(b)))
		// The package wants the padding of the last message to be there.
		one := append(bytes.Clone(b[:end]), make([]byte, 3)...)
		m, err := syscall.ParseNetlinkMessage(one[:(end+3)&^3])
		if err != nil || len(m) != 1 || uint64(n) > uint64(len(b)) {
			return all, true
		}
		all = append(all, m[0])
		b = b[end:]
	}
	return all, false
}
