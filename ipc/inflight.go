// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// KindInflight is the kind of Inflight.
const KindInflight Kind = 0x088

// Inflight asks the broker to answer the front end of vhost-user, which wants memory to
// keep what is in flight for the next worker: a worker can neither make memory nor pass
// a descriptor. What is in the answer is the worker's word, as all that it answers itself.
type Inflight struct {
	Bytes   uint32 // of memory, up to MaxInflight
	Queues  uint16 // as the front end has asked
	Ring    uint16 // as the front end has asked
	Payload uint32 // bytes of the answer's payload, InflightPayload or four more for padding
}

const (
	// MaxInflight is how many bytes 32 queues of 32,768 descriptors take.
	MaxInflight = 32 * (64 + 16*32768)
	// InflightPayload is the least length of the answer's payload, in bytes.
	InflightPayload = 20
	// InflightSize is the encoded size of Inflight, header included.
	InflightSize = HeaderSize + 12
)

// Encode writes the record to b, which must hold InflightSize bytes.
func (r *Inflight) Encode(b []byte) {
	putHeader(b, KindInflight, InflightSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint32(p, r.Bytes)
	binary.LittleEndian.PutUint16(p[4:], r.Queues)
	binary.LittleEndian.PutUint16(p[6:], r.Ring)
	binary.LittleEndian.PutUint32(p[8:], r.Payload)
}

// Decode reads exactly one record.
func (r *Inflight) Decode(b []byte) error {
	if err := expect(b, KindInflight, InflightSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	*r = Inflight{binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint16(p[4:]), binary.LittleEndian.Uint16(p[6:]), binary.LittleEndian.Uint32(p[8:])}
	if r.Bytes == 0 || r.Bytes > MaxInflight || r.Payload != InflightPayload && r.Payload != InflightPayload+4 {
		return fmt.Errorf("%w: %d bytes in flight, answer of %d", ErrMalformed, r.Bytes, r.Payload)
	}
	return nil
}
