// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// control is one control message.
func control(level, typ int32, data []byte) []byte {
	b := binary.NativeEndian.AppendUint64(nil, uint64(unix.SizeofCmsghdr+len(data)))
	b = binary.NativeEndian.AppendUint32(b, uint32(level))
	b = append(binary.NativeEndian.AppendUint32(b, uint32(typ)), data...)
	return append(b, make([]byte, -len(b)&7)...)
}

// FuzzControl reads any control data as the kernel would write it: messages are
// those that golang.org/x/sys finds, errors and addresses are taken from where
// the UAPI headers have them, and nothing is allocated.
func FuzzControl(f *testing.F) {
	ee := append([]byte{111, 0, 0, 0, 2, 3, 3, 0, 0xdc, 5, 0, 0, 0, 0, 0, 0}, 2, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0)
	ee6 := append([]byte{113, 0, 0, 0, 3, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}, append([]byte{10, 0, 0, 0, 0, 0, 0, 0, 0x20, 1}, make([]byte, 18)...)...)
	info := []byte{1, 0, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7}
	for _, b := range [][]byte{
		control(unix.SOL_IP, unix.IP_RECVERR, ee), control(unix.SOL_IPV6, unix.IPV6_RECVERR, ee6), control(unix.SOL_IP, unix.IP_RECVERR, ee[:16]),
		append(control(unix.SOL_UDP, unix.UDP_GRO, []byte{0xb0, 4, 0, 0}), control(unix.SOL_IP, unix.IP_PKTINFO, info)...),
		control(unix.SOL_IPV6, unix.IPV6_PKTINFO, append(make([]byte, 16), 1, 0, 0, 0)), control(unix.SOL_UDP, unix.UDP_GRO, []byte{0, 0, 0, 0x80}),
		control(unix.SOL_IP, unix.IP_RECVERR, ee)[:30], control(unix.SOL_IPV6, unix.IPV6_RECVERR, ee6[:30]), {16, 0, 0, 0, 0, 0, 0, 0},
	} {
		fuzz.Add(f, append([]byte{0}, b...))
		fuzz.Add(f, append([]byte{fuzz.CountAllocations}, b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1 || len(b) > 512 {
			return
		}
		mode, oob := b[0], b[1:]
		want, wantDatagram := readControl(oob)
		var e flow.SocketError
		errorControl(oob, &e)
		d := flow.Datagram{N: 9000}
		datagramControl(oob, &d)
		if e.Errno != want.Errno || e.Origin != want.Origin || e.Type != want.Type || e.Code != want.Code || e.Info != want.Info || e.Offender != want.Offender {
			t.Fatalf("%+v, want %+v\n%x", e, want, oob)
		}
		if d.Segment != wantDatagram.Segment || d.To != wantDatagram.To || d.Segment < 0 || d.Segment >= d.N {
			t.Fatalf("%+v, want %+v\n%x", d, wantDatagram, oob)
		}
		if fuzz.CountsAllocations(mode) && fuzz.Allocates(func() { errorControl(oob, &e); datagramControl(oob, &d) }) {
			t.Fatal("allocates")
		}
	})
}

// readControl reads control data by golang.org/x/sys.
func readControl(oob []byte) (e flow.SocketError, d flow.Datagram) {
	d.N = 9000
	for len(oob) >= unix.SizeofCmsghdr {
		n := binary.NativeEndian.Uint64(oob)
		if n < unix.SizeofCmsghdr || n > uint64(len(oob)) {
			return e, d
		}
		one := append(append([]byte(nil), oob[:n]...), make([]byte, -n&7)...)
		all, err := unix.ParseSocketControlMessage(one)
		if err != nil || len(all) != 1 {
			return e, d
		}
		readOne(all[0], &e, &d)
		oob = oob[min(len(one), len(oob)):]
	}
	return e, d
}

func readOne(m unix.SocketControlMessage, e *flow.SocketError, d *flow.Datagram) {
	b, u32 := m.Data, binary.NativeEndian.Uint32
	switch {
	case m.Header.Level == unix.SOL_UDP && m.Header.Type == unix.UDP_GRO && len(b) >= 4:
		if n := int32(u32(b)); n > 0 && int(n) < d.N {
			d.Segment = int(n)
		}
	case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(b) >= 12:
		d.To = packet.AddrFrom4([4]byte(b[8:]))
	case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(b) >= 20:
		d.To = packet.Addr(b[:16])
	case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR && len(b) >= 16:
		e.Errno, e.Origin, e.Type, e.Code, e.Info = syscall.Errno(u32(b)), b[4], b[5], b[6], u32(b[8:])
		if len(b) >= 32 && binary.NativeEndian.Uint16(b[16:]) == unix.AF_INET {
			e.Offender = packet.AddrFrom4([4]byte(b[20:]))
		}
	case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR && len(b) >= 16:
		e.Errno, e.Origin, e.Type, e.Code, e.Info = syscall.Errno(u32(b)), b[4], b[5], b[6], u32(b[8:])
		if len(b) >= 44 && binary.NativeEndian.Uint16(b[16:]) == unix.AF_INET6 {
			e.Offender = packet.Addr(b[24:40])
		}
	}
}
