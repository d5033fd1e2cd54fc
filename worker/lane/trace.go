// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"strconv"

	"aldente/worker/kernel"
	"aldente/worker/packet"
)

// trace logs a line for each frame, with --trace only: what that costs is paid by
// who asks for it.
type trace struct {
	pkt   packet.Packet
	whole []byte
	line  []byte
}

// frame logs one, with headers and payload in one piece or two.
func (t *trace) frame(way string, headers, payload []byte) {
	frame := headers
	if len(payload) > 0 {
		t.whole = append(append(t.whole[:0], headers...), payload...)
		frame = t.whole
	}
	b := append(append(t.line[:0], "<7>"...), way...)
	if err := t.pkt.Decode(frame); err != nil {
		b = append(append(b, "not decoded, "...), err.Error()...)
		b = strconv.AppendInt(append(b, ": length "...), int64(len(frame)), 10)
	} else {
		b = t.pkt.AppendText(b)
	}
	t.line = append(b, '\n')
	kernel.Print(logFD, t.line)
}
