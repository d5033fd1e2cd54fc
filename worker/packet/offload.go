// SPDX-License-Identifier: Apache-2.0

package packet

// Offload is what travels with a frame in virtio-net terms: struct
// virtio_net_hdr of include/uapi/linux/virtio_net.h, without its byte order.
type Offload struct {
	Flags      uint8  // OffloadNeedsChecksum, OffloadDataValid, OffloadUntold
	GSOType    uint8  // GSONone, GSOTCPv4, GSOTCPv6 or GSOUDPL4
	HdrLen     uint16 // bytes of all headers, when GSOType is set
	GSOSize    uint16 // payload bytes of each segment, when GSOType is set
	CsumStart  uint16 // where checksumming starts, with OffloadNeedsChecksum
	CsumOffset uint16 // where from CsumStart the checksum is stored
}

// Values of Offload.Flags and Offload.GSOType, as in virtio_net.h.
const (
	OffloadNeedsChecksum = 1
	OffloadDataValid     = 2

	// OffloadUntold is ours, and on no wire: a link that carries frames and nothing
	// beside them cannot say whether a checksum is complete. The field of TCP and
	// UDP may hold the sum of the pseudo-header alone, as with OffloadNeedsChecksum.
	OffloadUntold = 0x80

	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOUDPL4 = 5
	GSOECN   = 0x80
)

// OffloadSize is the encoded size of struct virtio_net_hdr.
const OffloadSize = 10
