// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"aldente/worker/link"
	"aldente/worker/packet"
)

// What the tap of a fast stand-in takes over from the guest's kernel, and does
// as a virtual machine's kernel does it in software: segments are cut and
// checksums computed here, verified and put together here.
const (
	tapFlags   = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	tapOffload = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
)

// fastUpward cuts what the guest's kernel left whole.
func fastUpward(tap, stream, mtu int) error {
	runtime.LockOSThread()
	from, to := link.NewTap(int32(tap), tapOffload), link.NewStream(int32(stream), mtu)
	b := link.NewBatch()
	for {
		more, err := from.Receive(b)
		if err != nil {
			return fmt.Errorf("tap: %w", err)
		}
		for i := range b.Frames {
			f := &b.Frames[i]
			n := headers(f)
			to.Send(&f.Offload, f.Data[:n], f.Data[n:])
			if err := drain(to); err != nil {
				return err
			}
		}
		if err := to.Flush(); err != nil {
			return fmt.Errorf("stream: %w", err)
		}
		if err := drain(to); err != nil {
			return err
		}
		if !more && len(b.Frames) == 0 {
			wait(tap, unix.POLLIN)
		}
	}
}

// headers is the length of the headers of a TCP segment that is to be summed,
// or that of the whole frame: what comes behind is not copied.
func headers(f *link.Frame) int {
	o := &f.Offload
	at := int(o.CsumStart) + 12 // data offset, RFC 9293 section 3.1
	if o.Flags&packet.OffloadNeedsChecksum == 0 || o.CsumOffset != 16 || at >= len(f.Data) {
		return len(f.Data)
	}
	return min(int(o.CsumStart)+int(f.Data[at]>>4)*4, len(f.Data))
}

// drain waits until the stream has taken everything.
func drain(to link.Link) error {
	for to.WantWrite() {
		wait(int(to.FD()), unix.POLLOUT)
		to.Writable()
	}
	if err := to.Flush(); err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return nil
}

func wait(fd int, events int16) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, -1)
}
