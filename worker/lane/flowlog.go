// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"net/netip"
	"strconv"
	"syscall"

	"aldente/ipc"
	"aldente/worker/kernel"
	"aldente/worker/packet"
)

// Bounds on the lines of a flow log: a guest opens flows as it likes.
const (
	flowBurst  = 100        // at once
	flowPause  = 50_000_000 // nanoseconds until there may be one more
	maxFlowLog = 64 << 10   // flows whose end is told
)

// flowLog tells of each flow as it begins, is refused, and ends: at debug level
// only, and then as far as the bounds let it. It works on what passes the lane
// anyway, sockets that come and go, so that translators need not know of it.
type flowLog struct {
	asked map[uint64]ipc.Open // by token, the broker has not answered
	open  map[int32]told      // by descriptor
	line  []byte
	free  int64 // lines that may be written, times flowPause
	last  int64 // when free was reckoned
	left  int   // lines left out since the last
}

// told is a flow that was told of.
type told struct {
	proto    uint8
	inbound  bool
	from, to netip.AddrPort
	began    int64
}

func newFlowLog() *flowLog {
	return &flowLog{
		asked: make(map[uint64]ipc.Open, ipc.MaxOutstanding), open: make(map[int32]told),
		line: make([]byte, 0, 512), free: flowBurst * flowPause,
	}
}

func addrPort(a [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), port)
}

// ask notes a request for a socket.
func (f *flowLog) ask(r *ipc.Open) {
	if len(f.asked) < 2*ipc.MaxOutstanding {
		f.asked[r.Token] = *r
	}
}

// answer tells what became of it.
func (f *flowLog) answer(now int64, fd int32, o *ipc.Opened) {
	r, ok := f.asked[o.Token]
	if !ok {
		return
	}
	delete(f.asked, o.Token)
	t := told{proto: r.Proto, inbound: r.Listener != 0, from: addrPort(r.Src, r.SrcPort), to: addrPort(r.Dst, r.DstPort), began: now}
	if o.Errno == 0 {
		f.begin(now, fd, t)
		return
	}
	why := syscall.Errno(o.Errno).Error()
	if o.Flags&ipc.OpenedProhibited != 0 {
		why = "egress rules"
	}
	f.say(now, "flow refused", &t, " reason=", strconv.Quote(why))
}

// accepted tells of a connection from outside.
func (f *flowLog) accepted(now int64, fd int32, peer packet.Addr, port uint16) {
	f.begin(now, fd, told{proto: ipc.ProtoTCP, inbound: true, from: addrPort(peer, port), began: now})
}

func (f *flowLog) begin(now int64, fd int32, t told) {
	if f.say(now, "flow opened", &t, "", "") && len(f.open) < maxFlowLog {
		f.open[fd] = t
	}
}

// closed tells that the socket of a flow is closed.
func (f *flowLog) closed(now int64, fd int32) {
	t, ok := f.open[fd]
	if !ok {
		return
	}
	delete(f.open, fd)
	f.say(now, "flow closed", &t, " ms=", strconv.FormatInt(max(now-t.began, 0)/1e6, 10))
}

// say writes one line, unless there were many. more is a further value's name, with
// a space in front and the sign behind, or empty.
func (f *flowLog) say(now int64, what string, t *told, more, value string) bool {
	f.free = min(f.free+now-f.last, flowBurst*flowPause)
	f.last = now
	if f.free < flowPause {
		f.left++
		return false
	}
	f.free -= flowPause
	if f.left > 0 {
		logf(levelDebug, "lines about flows are left out count=%d", f.left)
		f.left = 0
	}
	b := append(f.line[:0], '<', '0'+levelDebug, '>')
	b = append(b, what...)
	switch t.proto {
	case ipc.ProtoTCP:
		b = append(b, " protocol=tcp"...)
	case ipc.ProtoUDP:
		b = append(b, " protocol=udp"...)
	default:
		b = append(b, " protocol=icmp"...)
	}
	if t.inbound {
		b = append(b, " direction=in from="...)
	} else {
		b = append(b, " direction=out from="...)
	}
	b = t.from.AppendTo(b)
	if t.to.IsValid() {
		b = t.to.AppendTo(append(b, " to="...))
	}
	b = append(append(b, more...), value...)
	b = append(b, '\n')
	f.line = b
	kernel.Print(logFD, b)
	return true
}
