// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"fmt"
)

// Requests of the front end.
const (
	getFeatures         = 1
	setFeatures         = 2
	setOwner            = 3
	resetOwner          = 4
	setMemTable         = 5
	setLogBase          = 6
	setLogFD            = 7
	setVringNum         = 8
	setVringAddr        = 9
	setVringBase        = 10
	getVringBase        = 11
	setVringKick        = 12
	setVringCall        = 13
	setVringErr         = 14
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	getQueueNum         = 17
	setVringEnable      = 18
	sendRARP            = 19
	netSetMTU           = 20
	getConfig           = 24
	setConfig           = 25
	getInflightFD       = 31
	setInflightFD       = 32
	resetDevice         = 34
	getMaxMemSlots      = 36
	addMemReg           = 37
	remMemReg           = 38
	setStatus           = 39
	getStatus           = 40
)

// The header: request, flags, and length of the payload, 32 bits each in the
// machine's byte order.
const (
	headerLen  = 12
	maxPayload = 8 + maxFDs*regionLen // of SET_MEM_TABLE, the longest

	flagVersion     = 1 // of the protocol, the only one
	versionMask     = 3
	flagReply       = 1 << 2
	flagNeedReply   = 1 << 3
	maxFDs          = 32  // with one message, as many as regions of a table
	receivableFDs   = 253 // as many as the kernel carries
	bytesPerFD      = 4
	regionLen       = 32
	configHeaderLen = 12
)

// handler is what is true of a request, and what is done for it.
type handler struct {
	name     string
	min, max int                          // length of its payload, in bytes
	fds      int                          // how many descriptors may come with it
	needs    uint64                       // protocol features without which it is unknown
	answers  bool                         // it has an answer of its own, but where it fails
	do       func(*Session, []byte) error // payload; descriptors are in Session.fds
}

// handlers is the table of all requests that are known.
var handlers = [...]handler{
	getFeatures:         {"GET_FEATURES", 0, 0, 0, 0, true, (*Session).getFeatures},
	setFeatures:         {"SET_FEATURES", 8, 8, 0, 0, false, (*Session).setFeatures},
	setOwner:            {"SET_OWNER", 0, 0, 0, 0, false, (*Session).nothing},
	resetOwner:          {"RESET_OWNER", 0, 0, 0, 0, false, (*Session).nothing},
	setMemTable:         {"SET_MEM_TABLE", 8 + regionLen, 8 + maxFDs*regionLen, maxFDs, 0, false, (*Session).setMemTable},
	setLogBase:          {"SET_LOG_BASE", 16, 16, 1, protoLogShm, true, (*Session).setLogBase},
	setLogFD:            {"SET_LOG_FD", 0, 8, 1, 0, false, (*Session).setLogFD},
	setVringNum:         {"SET_VRING_NUM", 8, 8, 0, 0, false, (*Session).setVringNum},
	setVringAddr:        {"SET_VRING_ADDR", 40, 40, 0, 0, false, (*Session).setVringAddr},
	setVringBase:        {"SET_VRING_BASE", 8, 8, 0, 0, false, (*Session).setVringBase},
	getVringBase:        {"GET_VRING_BASE", 8, 8, 0, 0, true, (*Session).getVringBase},
	setVringKick:        {"SET_VRING_KICK", 8, 8, 1, 0, false, (*Session).setVringKick},
	setVringCall:        {"SET_VRING_CALL", 8, 8, 1, 0, false, (*Session).setVringCall},
	setVringErr:         {"SET_VRING_ERR", 8, 8, 1, 0, false, (*Session).setVringErr},
	getProtocolFeatures: {"GET_PROTOCOL_FEATURES", 0, 0, 0, 0, true, (*Session).getProtocolFeatures},
	setProtocolFeatures: {"SET_PROTOCOL_FEATURES", 8, 8, 0, 0, false, (*Session).setProtocolFeatures},
	getQueueNum:         {"GET_QUEUE_NUM", 0, 0, 0, 0, true, (*Session).getQueueNum},
	setVringEnable:      {"SET_VRING_ENABLE", 8, 8, 0, 0, false, (*Session).setVringEnable},
	sendRARP:            {"SEND_RARP", 8, 8, 0, protoRARP, false, (*Session).nothing},
	netSetMTU:           {"NET_SET_MTU", 8, 8, 0, protoMTU, false, (*Session).netSetMTU},
	getConfig:           {"GET_CONFIG", configHeaderLen, configHeaderLen + configLen, 0, protoConfig, true, (*Session).getConfig},
	setConfig:           {"SET_CONFIG", configHeaderLen, configHeaderLen + configLen, 0, protoConfig, false, (*Session).setConfig},
	getInflightFD:       {"GET_INFLIGHT_FD", 20, 24, 0, protoInflight, true, (*Session).getInflightFD},
	setInflightFD:       {"SET_INFLIGHT_FD", 20, 24, 1, protoInflight, false, (*Session).setInflightFD},
	resetDevice:         {"RESET_DEVICE", 0, 0, 0, protoResetDevice, false, (*Session).resetDevice},
	getMaxMemSlots:      {"GET_MAX_MEM_SLOTS", 0, 0, 0, protoMemSlots, true, (*Session).getMaxMemSlots},
	addMemReg:           {"ADD_MEM_REG", 8 + regionLen, 8 + regionLen, 1, protoMemSlots, false, (*Session).addMemReg},
	remMemReg:           {"REM_MEM_REG", 8 + regionLen, 8 + regionLen, 1, protoMemSlots, false, (*Session).remMemReg},
	setStatus:           {"SET_STATUS", 8, 8, 0, protoStatus, false, (*Session).setStatus},
	getStatus:           {"GET_STATUS", 0, 0, 0, protoStatus, true, (*Session).getStatus},
}

// MaxDescriptors are how many a session of a well-behaved front end holds at a time: three for each
// queue, and those of one message.
const MaxDescriptors = 3*MaxQueues + maxFDs

// header is that of a message.
type header struct{ request, flags, size uint32 }

func (h *header) decode(b []byte) error {
	*h = header{u32(b), u32(b[4:]), u32(b[8:])}
	switch {
	case h.flags&versionMask != flagVersion:
		return malformed("request %d: version %d", h.request, h.flags&versionMask)
	case h.flags&flagReply != 0:
		return malformed("request %d is a reply", h.request)
	case h.size > maxPayload:
		return malformed("request %d: payload of %d bytes", h.request, h.size)
	}
	return nil
}

// encode appends a whole reply to b.
func (h *header) encode(b, payload []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, h.request)
	b = binary.NativeEndian.AppendUint32(b, flagVersion|flagReply)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func u32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func u64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// malformed is the error that ends a connection.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}
