// SPDX-License-Identifier: Apache-2.0

package ipc

import "fmt"

// Live begins a capture that somebody looks at while it goes on, or ends it. What
// begins one comes with the end of a pipe to which the worker writes pcapng. It is
// open for writing alone and does not block. Whoever reads it has the other end, and
// no other descriptor of this one.
type Live struct {
	ID    uint32   // of the capture, never zero
	Snap  uint32   // bytes of each frame that are recorded, zero: all
	Flags uint8    // Live*
	Proto uint8    // of the frames: ProtoTCP, ProtoUDP, ProtoICMP with ICMPv6, LiveARP, zero: all
	Port  uint16   // either side's, zero: any; of TCP and UDP only
	Addr  [16]byte // either side's, zero: any
	Name  [16]byte // of the guest's interface, with zeros behind it
}

// Flags of Live.
const (
	LiveEnd   = 1 << 0 // ends the capture; nothing else is set, and no pipe comes with it
	LiveDrops = 1 << 1 // only frames with something to tell: dropped or refused
)

// LiveARP is Live.Proto of ARP, which is no protocol of IP. Number 255 is none.
const LiveARP = 255

// MaxLive is how many captures may go on at a time.
const MaxLive = 4

// liveBody is the size of Live, in bytes.
const liveBody = 4 + 4 + 1 + 1 + 2 + 16 + 16

// Encode returns the record.
func (l *Live) Encode() []byte { return encodeFixed(KindLive, l) }

// Decode reads exactly one record and checks its ranges.
func (l *Live) Decode(b []byte) error {
	if err := decodeFixed(b, KindLive, l); err != nil {
		return err
	}
	if l.Flags&LiveEnd != 0 {
		if l.ID == 0 || *l != (Live{ID: l.ID, Flags: LiveEnd}) {
			return fmt.Errorf("%w: end of capture %d, and more", ErrMalformed, l.ID)
		}
		return nil
	}
	ports := true
	switch l.Proto {
	case 0, ProtoTCP, ProtoUDP:
	case ProtoICMP, LiveARP:
		ports = false
	default:
		return fmt.Errorf("%w: capture of protocol %d", ErrMalformed, l.Proto)
	}
	if l.ID == 0 || l.Flags&^LiveDrops != 0 || l.Port != 0 && !ports || !validName(&l.Name) {
		return fmt.Errorf("%w: capture %d, flags %#x, protocol %d, port %d, name %q", ErrMalformed, l.ID, l.Flags, l.Proto, l.Port, l.Name)
	}
	return nil
}
