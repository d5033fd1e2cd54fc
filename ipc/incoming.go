// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// KindIncoming is of Incoming, with the connection.
const KindIncoming Kind = 0x089

// Incoming is a connection that the broker has accepted, where rules say who may
// connect to the guest: the worker does not have the listening socket. It comes with
// the connection, non-blocking.
type Incoming struct {
	Listener          // by which it has come, of ProtoTCP and on the host
	Port     uint16   // the peer's
	Peer     [16]byte // the peer's address
}

// IncomingSize is the encoded size of Incoming, header included.
const IncomingSize = HeaderSize + 4 + 1 + 1 + 2 + 2 + 2 + 4 + 16 + 16

// Encode writes the record to b, which must hold IncomingSize bytes.
func (i *Incoming) Encode(b []byte) {
	_ = b[IncomingSize-1]
	putHeader(b, KindIncoming, IncomingSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint32(p[0:], i.ID)
	p[4], p[5] = i.Proto, i.Flags
	binary.LittleEndian.PutUint16(p[6:], i.HostPort)
	binary.LittleEndian.PutUint16(p[8:], i.GuestPort)
	binary.LittleEndian.PutUint16(p[10:], i.Port)
	binary.LittleEndian.PutUint32(p[12:], 0)
	copy(p[16:32], i.Target[:])
	copy(p[32:48], i.Peer[:])
}

// Decode reads exactly one record.
func (i *Incoming) Decode(b []byte) error {
	if err := expect(b, KindIncoming, IncomingSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	i.ID = binary.LittleEndian.Uint32(p[0:])
	i.Proto, i.Flags = p[4], p[5]
	i.HostPort = binary.LittleEndian.Uint16(p[6:])
	i.GuestPort = binary.LittleEndian.Uint16(p[8:])
	i.Port = binary.LittleEndian.Uint16(p[10:])
	copy(i.Target[:], p[16:32])
	copy(i.Peer[:], p[32:48])
	if i.ID == 0 || i.Proto != ProtoTCP || i.Flags&^ListenerMayBypass != 0 || binary.LittleEndian.Uint32(p[12:]) != 0 {
		return fmt.Errorf("%w: a connection by listener %d, protocol %d, flags %#x", ErrMalformed, i.ID, i.Proto, i.Flags)
	}
	return nil
}
