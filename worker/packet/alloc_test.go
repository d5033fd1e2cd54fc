// SPDX-License-Identifier: Apache-2.0

package packet

import "testing"

// Nothing on the packet path may allocate.
func TestNoAllocations(t *testing.T) {
	var (
		p    Packet
		tcp  TCP
		udp  UDP
		echo Echo
		arp  ARP
		o    Offload
		frag Fragmenter
		seen int

		buf   = make([]byte, 4096)
		data  = pattern(2000)
		tcp4  = tcpFrame(&ends4, 1448)
		tcp6  = tcpFrame(&ends6, 1448)
		ext6  = extFrame([]ext{{ProtoHopByHop, padN(8)}, fragExt(0, true, 1)}, ProtoUDP, pattern(64))
		wrong = extFrame([]ext{{ProtoDestOpts, padN(8)}, {ProtoHopByHop, padN(8)}}, ProtoUDP, nil)
		syn   = segment(SYN, []byte{2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2})
		sack  = segment(ACK, append([]byte{1, 1, 5, 10}, make([]byte, 8)...))
		big4  = append([]byte(nil), buf[:PutUDPFull(buf, &ends4, 1, 2, data)]...)
		big6  = append([]byte(nil), buf[:PutUDPFull(buf, &ends6, 1, 2, data)]...)
		f     = TCPFields{Flags: ACK, WScale: -1, SACK: make([]SACKBlock, 3)}
	)
	for name, run := range map[string]func(){
		"Decode": func() {
			for _, b := range [][]byte{tcp4, tcp6, ext6, wrong, nil} {
				p.Decode(b)
				p.ChecksumOK(&o)
				_, _ = p.Payload(), p.IPHeader()
			}
		},
		"TCP":  func() { tcp.Decode(syn); tcp.Decode(sack); tcp.Decode(nil) },
		"UDP":  func() { udp.Decode(tcp4[34:]); udp.DecodeGSO(tcp4[34:]) },
		"Echo": func() { echo.Decode(tcp4[34:]) },
		"ARP":  func() { arp.Decode(tcp4[14:]) },
		"Sum":  func() { Checksum(data) },
		"PutTCP": func() {
			PutTCP(buf, &ends4, &f, 10, &o)
			PutTCP(buf, &ends6, &f, 10, &o)
			SetGSO(&o, &ends6, ProtoTCP, 1)
		},
		"PutUDP":    func() { n := PutUDP(buf, &ends6, 1, 2, 50, &o); CompleteChecksum(buf[:n+50], &o) },
		"PutFull":   func() { PutUDPFull(buf, &ends4, 1, 2, data) },
		"PutICMP":   func() { PutICMPError(buf, &ends6, 1, 2, 3, data); PutEcho(buf, &ends4, true, 1, 2, data) },
		"PutARP":    func() { PutARP(buf, 1, MAC{}, MAC{}, MAC{}, [4]byte{}, MAC{}, [4]byte{}) },
		"Fragment4": func() { frag.Fragment(big4, 576, 1, func(h, b []byte) { seen += len(h) + len(b) }) },
		"Fragment6": func() { frag.Fragment(big6, 1280, 1, func(h, b []byte) { seen += len(h) + len(b) }) },
	} {
		if n := testing.AllocsPerRun(20, run); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	if seen == 0 {
		t.Error("no fragment was emitted")
	}
}
