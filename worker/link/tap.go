// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// tapSlot is the room for one read: the longest super-frame, its virtio-net
// header, and some more, by which a frame that was cut off is told.
const tapSlot = 64<<10 + 128

// While frames come one by one, as questions and answers do, the read that
// would find nothing is left out: the descriptor is level-triggered. Every
// lookAgain-th time it is done, so that the first batch ends that.
const lookAgain = 8

// A frame up to smallFrame is copied together: for the kernel to collect it from
// three or four places costs more.
const smallFrame = 2048

// tap is a tap device with IFF_VNET_HDR and the header's original length.
// One call moves one frame; super-frames make that enough.
type tap struct {
	fd       int32
	header   int // bytes of virtio-net header before each frame, 0: a plain tap
	mtu      int // TCP segments that are cut here are no larger
	offload  uint32
	closed   bool
	single   uint8 // calls of Receive in a row that found one frame, up to lookAgain
	counters Counters
	cut      cutter
	none     packet.Offload
	iov      [3]unix.Iovec
	head     [packet.MaxHeaders]byte
	small    [packet.OffloadSize + smallFrame]byte // the next frame's virtio-net header, and a small frame behind it
}

// NewTap returns the link of a tap device's descriptor, attached with
// IFF_TAP|IFF_NO_PI|IFF_VNET_HDR and a header of 10 bytes. offload holds the
// TUN_F_* bits that TUNSETOFFLOAD took; super-frames of a kind that is not
// among them are cut before they are sent. A kernel that knows no USO refuses
// to take them too.
func NewTap(fd int32, offload uint32) Link {
	// The translators cut for the MTU; there is nothing to add to that here.
	t := &tap{fd: fd, header: packet.OffloadSize, mtu: MaxFrame, offload: offload}
	iovec(&t.iov[0], t.vnet())
	t.SetCarrier(true)
	return t
}

// NewPlainTap returns the link of a tap device without IFF_VNET_HDR: frames alone, as a
// network card without offloads has them. mtu is that of the guest's interface, in bytes
// of IP packet; TCP super-frames are cut to it.
func NewPlainTap(fd int32, mtu int) Link {
	t := &tap{fd: fd, mtu: mtu}
	t.SetCarrier(true)
	return t
}

func (t *tap) vnet() []byte { return t.small[:packet.OffloadSize] }

func (t *tap) FD() int32           { return t.fd }
func (t *tap) CanSend() bool       { return !t.closed }
func (t *tap) Writable() bool      { return true }
func (t *tap) WantWrite() bool     { return false }
func (t *tap) Counters() *Counters { return &t.counters }

func (t *tap) Close() {
	t.closed = true
	closeFD(t.fd)
}

// SetCarrier implements Plug. A worker before this one may have ended with the carrier off,
// so each begins with it on.
func (t *tap) SetCarrier(on bool) { setCarrier(t.fd, on) }

// Flush has nothing to write, but tells of a device that is gone.
func (t *tap) Flush() error {
	if t.closed {
		return ErrBroken
	}
	return nil
}

// Receive reads frame after frame, each behind the last.
func (t *tap) Receive(b *Batch) (more bool, err error) {
	b.reset()
	if t.closed {
		return false, ErrBroken
	}
	most := MaxFrames
	if t.single > 1 && t.single < lookAgain {
		most = 1
	}
	more, err = t.fill(b, most)
	switch {
	case len(b.Frames) > 1:
		t.single = 0
	case t.single == lookAgain:
		t.single = 2
	default:
		t.single++
	}
	return more && most > 1, err
}

// fill reads up to most frames.
func (t *tap) fill(b *Batch, most int) (more bool, err error) {
	off := 0
	for range most {
		if off+tapSlot > len(b.buf) {
			break
		}
		slot := b.buf[off : off+tapSlot]
		n, e := read(t.fd, slot)
		switch e {
		case 0:
			if t.accept(b, slot[:n]) {
				off += (n + 63) &^ 63
			}
		case unix.EAGAIN:
			return false, nil
		case unix.EINVAL: // a frame that the header cannot describe; it is gone
			t.counters.Malformed++
		default: // EBADFD or EFAULT: the device was deleted
			t.closed = true
			return false, ErrBroken
		}
	}
	return true, nil
}

// accept adds what was read to the batch if its header makes sense.
func (t *tap) accept(b *Batch, raw []byte) bool {
	if len(raw) < t.header+MinFrame || len(raw) == tapSlot {
		t.counters.Malformed++
		return false
	}
	var o packet.Offload
	data := raw[t.header:len(raw):len(raw)]
	if t.header > 0 {
		if decodeOffload(raw, &o); !normalise(&o, data) {
			t.counters.Malformed++
			return false
		}
	}
	b.add(data).Offload = o
	t.counters.Received++
	t.counters.ReceivedBytes += uint64(len(data))
	return true
}

// normalise checks a header that came with a frame, which a guest with a
// packet socket may have written, and clears what does not apply. HdrLen is
// found anew: the kernel's is that of its linear buffer.
func normalise(o *packet.Offload, data []byte) bool {
	o.Flags &= packet.OffloadNeedsChecksum | packet.OffloadDataValid
	o.HdrLen = 0
	partial := o.Flags&packet.OffloadNeedsChecksum != 0
	start := int(o.CsumStart)
	switch {
	case !partial:
		o.CsumStart, o.CsumOffset = 0, 0
	case start < MinFrame || start+int(o.CsumOffset)+2 > len(data):
		return false
	}
	switch o.GSOType &^ packet.GSOECN {
	case packet.GSONone:
		o.GSOType, o.GSOSize = packet.GSONone, 0
		return true
	case packet.GSOTCPv4, packet.GSOTCPv6:
		if partial {
			if start+tcpMin > len(data) {
				return false
			}
			o.HdrLen = uint16(start + int(data[start+tcpDataOff]>>4)*4)
		}
	case packet.GSOUDPL4:
		o.GSOType = packet.GSOUDPL4
		if partial {
			o.HdrLen = uint16(start + udpLen)
		}
	default:
		return false
	}
	return o.GSOSize != 0 && int(o.HdrLen) <= len(data)
}

// Send writes the frame at once.
func (t *tap) Send(o *packet.Offload, headers, payload []byte) bool {
	if o == nil {
		o = &t.none
	}
	size := len(headers) + len(payload)
	switch {
	case t.closed:
		t.counters.Dropped++
		return false
	case size < MinFrame || len(headers) < MinFrame:
		t.counters.Refused++
		return false
	case o.GSOType != packet.GSONone && !t.takes(o, headers):
		return t.sendCut(o, headers, payload)
	case t.header == 0 && o.Flags&packet.OffloadNeedsChecksum != 0:
		if len(headers) > len(t.head) || !complete(t.head[:copy(t.head[:], headers)], payload, o) {
			t.counters.Refused++
			return false
		}
		headers = t.head[:len(headers)]
	}
	encodeOffload(t.vnet(), o)
	return t.write(headers, payload)
}

// takes tells whether the tap does the cutting itself.
func (t *tap) takes(o *packet.Offload, headers []byte) bool {
	v4 := binary.BigEndian.Uint16(headers[12:]) == packet.EtherTypeIPv4
	var bit uint32
	switch kind := o.GSOType &^ packet.GSOECN; {
	case kind == packet.GSOTCPv4:
		bit = unix.TUN_F_TSO4
	case kind == packet.GSOTCPv6:
		bit = unix.TUN_F_TSO6
	case kind == packet.GSOUDPL4 && v4:
		bit = unix.TUN_F_USO4
	case kind == packet.GSOUDPL4:
		bit = unix.TUN_F_USO6
	}
	return t.offload&bit != 0
}

func (t *tap) sendCut(o *packet.Offload, headers, payload []byte) bool {
	if !t.cut.start(o, headers, payload, t.mtu) {
		t.counters.Refused++
		return false
	}
	clear(t.vnet())
	ok := true
	for t.cut.more() && !t.closed {
		payload := t.cut.next(t.head[:])
		ok = t.write(t.head[:t.cut.hlen], payload) && ok
	}
	return ok
}

// write passes one frame to the kernel, behind the header in t.vnet where it has one.
func (t *tap) write(headers, payload []byte) bool {
	size := len(headers) + len(payload)
	var e unix.Errno
	if size <= smallFrame {
		frame := t.small[:packet.OffloadSize+max(size, minWire)]
		n := packet.OffloadSize + copy(frame[packet.OffloadSize:], headers)
		n += copy(frame[n:], payload)
		clear(frame[n:])
		_, e = write(t.fd, frame[packet.OffloadSize-t.header:])
	} else {
		iovec(&t.iov[1], headers)
		iovec(&t.iov[2], payload)
		v := t.iov[:]
		if t.header == 0 {
			v = v[1:]
		}
		_, e = writev(t.fd, v)
	}
	switch e {
	case 0:
		t.counters.Sent++
		t.counters.SentBytes += uint64(size)
		return true
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EIO: // EIO: set down
		t.counters.Dropped++
	case unix.EBADFD, unix.EBADF:
		t.closed = true
		t.counters.Dropped++
	default:
		t.counters.Refused++
	}
	return false
}

// struct virtio_net_hdr as the tap device has it without TUNSETVNETLE: in the
// machine's byte order.

func decodeOffload(b []byte, o *packet.Offload) {
	_ = b[packet.OffloadSize-1]
	o.Flags = b[0]
	o.GSOType = b[1]
	o.HdrLen = binary.NativeEndian.Uint16(b[2:])
	o.GSOSize = binary.NativeEndian.Uint16(b[4:])
	o.CsumStart = binary.NativeEndian.Uint16(b[6:])
	o.CsumOffset = binary.NativeEndian.Uint16(b[8:])
}

func encodeOffload(b []byte, o *packet.Offload) {
	_ = b[packet.OffloadSize-1]
	b[0] = o.Flags
	b[1] = o.GSOType
	binary.NativeEndian.PutUint16(b[2:], o.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], o.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], o.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], o.CsumOffset)
}
