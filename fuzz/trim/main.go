// SPDX-License-Identifier: Apache-2.0

// Command trim makes a seed corpus of a capture. Of frames that look alike it
// keeps two, of long ones none. It takes times away, so that the same traffic
// makes the same file.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"aldente/fuzz"
)

const (
	longest = 1600 // bytes of a frame
	alike   = 2
	most    = 48 // frames of one file
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: trim CAPTURE CORPUS")
		os.Exit(2)
	}
	in, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], trim(in), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func trim(in []byte) []byte {
	out := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	out = append(out, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0)
	seen := map[string]int{}
	n := 0
	for _, frame := range fuzz.Records(in) {
		s := shape(frame)
		if seen[s]++; seen[s] > alike || len(frame) > longest || n == most {
			continue
		}
		n++
		out = append(out, make([]byte, 8)...)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(frame)))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(frame)))
		out = append(out, frame...)
	}
	return out
}

// shape is what frames that look alike have in common: headers, flags, kinds of
// options, the first bytes of what a known port carries.
func shape(frame []byte) string {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	var b strings.Builder
	for _, l := range p.Layers() {
		fmt.Fprintf(&b, "%v ", l.LayerType())
		switch l := l.(type) {
		case *layers.Ethernet:
			b.Write(l.SrcMAC[:3])
		case *layers.IPv4:
			fmt.Fprintf(&b, "%d%v%d ", l.IHL, l.Flags, min(l.FragOffset, 1))
		case *layers.TCP:
			fmt.Fprintf(&b, "%x ", frame[len(frame)-len(l.Payload)-len(l.Contents):][13])
			for _, o := range l.Options {
				fmt.Fprintf(&b, "%d/%d ", o.OptionType, o.OptionLength)
			}
			fmt.Fprint(&b, len(l.Payload) > 0)
		case *layers.UDP:
			fmt.Fprintf(&b, "%d %d ", min(l.SrcPort, 30000), min(l.DstPort, 30000))
		case *layers.ICMPv4:
			fmt.Fprint(&b, l.TypeCode)
		case *layers.ICMPv6:
			fmt.Fprint(&b, l.TypeCode)
		case *layers.DHCPv4:
			fmt.Fprint(&b, l.Options)
		case *layers.DHCPv6:
			fmt.Fprint(&b, l.MsgType)
		}
	}
	return b.String()
}
