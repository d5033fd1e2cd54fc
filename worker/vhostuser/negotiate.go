// SPDX-License-Identifier: Apache-2.0

package vhostuser

import "encoding/binary"

// offered are the features of virtio that this session has.
func (s *Session) offered() uint64 {
	f := s.config.Features
	if s.config.MAC == [6]byte{} {
		f &^= FeatureMAC
	}
	if s.config.MTU == 0 {
		f &^= FeatureMTU
	}
	return f
}

func (s *Session) nothing([]byte) error { return nil }

func (s *Session) getFeatures([]byte) error { return s.answer(s.offered()) }

func (s *Session) setFeatures(b []byte) error {
	f := u64(b)
	if more := f &^ s.offered(); more != 0 {
		return malformed("features %#x were not offered", more)
	}
	if (f^s.features)&^FeatureLogAll != 0 && s.running() {
		return malformed("features change from %#x to %#x while rings run", s.features, f)
	}
	s.features = f
	s.dev.SetFeatures(f)
	if f&FeatureProtocol == 0 {
		for i := range s.queues {
			s.enable(i, true)
		}
	}
	return nil
}

func (s *Session) running() bool {
	for i := range s.queues {
		if s.queues[i].Started {
			return true
		}
	}
	return false
}

// offeredProtocol are the features of the protocol that this session has.
func (s *Session) offeredProtocol() uint64 {
	f := uint64(protoMQ | protoLogShm | protoRARP | protoReplyAck | protoMTU | protoConfig | protoResetDevice | protoMemSlots | protoStatus)
	if s.config.NewInflight != nil {
		f |= protoInflight
	}
	return f
}

func (s *Session) getProtocolFeatures([]byte) error { return s.answer(s.offeredProtocol()) }

func (s *Session) setProtocolFeatures(b []byte) error {
	f := u64(b)
	if more := f &^ s.offeredProtocol(); more != 0 {
		return malformed("protocol features %#x were not offered", more)
	}
	s.protocol = f
	return nil
}

func (s *Session) getQueueNum([]byte) error { return s.answer(MaxPairs) }

// resetDevice brings queues, features and status to where they were in the
// beginning. The connection, what was negotiated of the protocol, the memory and the
// descriptors for calls stay: they belong to the front end, not to the driver.
func (s *Session) resetDevice([]byte) error {
	for i := range s.queues {
		s.enable(i, false)
	}
	s.reset()
	return nil
}

// reset ends what a driver has begun.
func (s *Session) reset() {
	for i := range s.queues {
		s.stop(i)
		q := &s.queues[i]
		*q = queue{Queue: Queue{Kick: none, Call: q.Call, Err: q.Err, Enabled: q.Enabled}}
	}
	s.features, s.status = 0, 0
	s.dev.SetFeatures(0)
}

// setStatus keeps the status of the device. Zero is the driver's end; which queues
// are enabled is not its business.
func (s *Session) setStatus(b []byte) error {
	v := u64(b)
	if v > 0xff {
		return malformed("status %#x", v)
	}
	if v == 0 && s.status != 0 {
		s.reset()
	}
	s.status = v
	return nil
}

func (s *Session) getStatus([]byte) error { return s.answer(s.status) }

// minMTU is the least that virtio and IPv4 allow.
const minMTU = 68

// netSetMTU is told the MTU that the front end tells its guest.
func (s *Session) netSetMTU(b []byte) error {
	v := u64(b)
	if v < minMTU || v > 65535 {
		return errRefused
	}
	s.dev.SetMTU(int(v))
	return nil
}

// configLen is the length of the configuration space, in bytes: what there is, and
// zeros behind it.
const configLen = 256

// space is the configuration of a network device, virtio 1.3 section 5.1.4.
func (s *Session) space() (b [configLen]byte) {
	copy(b[:], s.config.MAC[:])
	binary.LittleEndian.PutUint16(b[6:], 1) // the link is up
	binary.LittleEndian.PutUint16(b[8:], MaxPairs)
	binary.LittleEndian.PutUint16(b[10:], uint16(s.config.MTU))
	binary.LittleEndian.PutUint32(b[12:], 0xffffffff) // speed is not known
	b[16] = 0xff                                      // neither is the duplex mode
	return b
}

// getConfig answers with a part of the configuration, or with nothing where there
// is no such part.
func (s *Session) getConfig(b []byte) error {
	offset, size := u32(b), u32(b[4:])
	if int(size) != len(b)-configHeaderLen || offset > configLen || size > configLen-offset {
		return s.reply(nil)
	}
	space := s.space()
	copy(b[configHeaderLen:], space[offset:offset+size])
	return s.reply(b)
}

// setConfig refuses: nothing of the configuration is the driver's to write.
func (s *Session) setConfig([]byte) error { return errRefused }
