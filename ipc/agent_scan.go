// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// AgentScan asks which ports are bound in the namespace: of TCP sockets that
// listen, and of UDP sockets that are bound and not connected. AgentPorts are the
// answer, one in nearly all cases. It is asked only after a set-up with
// AgentSetupScan. One that comes before the answer to another takes its place: the
// other is not answered, if it was not on its way already.
type AgentScan struct {
	ID   uint32 // of the scan, more than that of the last; the answers have it too
	Wait uint32 // ScanNow, ScanChange
}

// When a scan is answered.
const (
	ScanNow    = iota // at once
	ScanChange        // when something is not as the last answer said: looked at now, and then each second
	scanWaits         // how many there are
)

// All ports are 2,048 words of 64, the lowest port in the lowest bit: first those
// of TCP, then those of UDP.
const (
	PortWords    = 2 * firstUDPWord
	firstUDPWord = 1 << 16 / 64
)

// WordOf returns the place among all words of a protocol's word.
func WordOf(proto uint8, word int) uint16 {
	if proto == ProtoUDP {
		return uint16(firstUDPWord + word)
	}
	return uint16(word)
}

// MaxPortWords is how many words one AgentPorts holds.
const MaxPortWords = 64

// AgentPorts holds words that are not zero, in ascending order over all records
// of a scan.
type AgentPorts struct {
	ID    uint32               // of the scan
	Errno uint16               // the scan has failed; it ends with this
	Last  uint8                // 1: the scan ends with this
	N     uint8                // how many words follow; at least one unless the scan ends
	Words [MaxPortWords]uint16 // numbers of words, see WordOf; the first N count
	Bits  [MaxPortWords]uint64 // their bits: the ports that are bound
}

// agentPortsSize is the encoded size of AgentPorts, header included.
const agentPortsSize = HeaderSize + 8 + MaxPortWords*(2+8)

// Encode returns the record.
func (s *AgentScan) Encode() []byte { return encodeFixed(AgentKindScan, s) }

// Decode reads exactly one record and checks its range.
func (s *AgentScan) Decode(b []byte) error {
	if err := decodeFixed(b, AgentKindScan, s); err != nil {
		return err
	}
	if s.Wait >= scanWaits {
		return fmt.Errorf("%w: scan that waits for %d", ErrMalformed, s.Wait)
	}
	return nil
}

// Encode returns the record.
func (p *AgentPorts) Encode() []byte {
	b := make([]byte, HeaderSize, agentPortsSize)
	putHeader(b, AgentKindPorts, agentPortsSize)
	b = binary.LittleEndian.AppendUint32(b, p.ID)
	b = binary.LittleEndian.AppendUint16(b, p.Errno)
	b = append(b, p.Last, p.N)
	for _, w := range p.Words {
		b = binary.LittleEndian.AppendUint16(b, w)
	}
	for _, w := range p.Bits {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// Decode reads exactly one record and checks its ranges.
func (p *AgentPorts) Decode(b []byte) error {
	if err := expect(b, AgentKindPorts, agentPortsSize); err != nil {
		return err
	}
	b = b[HeaderSize:]
	p.ID, p.Errno, p.Last, p.N = binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), b[6], b[7]
	words, bits := b[8:], b[8+2*MaxPortWords:]
	for i := range p.Words {
		p.Words[i] = binary.LittleEndian.Uint16(words[2*i:])
		p.Bits[i] = binary.LittleEndian.Uint64(bits[8*i:])
	}
	if p.Last > 1 || p.N > MaxPortWords || p.Last == 0 && (p.N == 0 || p.Errno != 0) || !p.ordered() {
		return fmt.Errorf("%w: %d words of ports", ErrMalformed, p.N)
	}
	return nil
}

// ordered tells whether the words are what they have to be, and nothing follows.
func (p *AgentPorts) ordered() bool {
	for i, w := range p.Words {
		switch used := i < int(p.N); {
		case used != (p.Bits[i] != 0), !used && w != 0, w >= PortWords, used && i > 0 && w <= p.Words[i-1]:
			return false
		}
	}
	return true
}
