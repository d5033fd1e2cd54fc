// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/output"
	"aldente/ipc"
)

// capture is the packet capture of -p. The worker writes it and may do nothing but
// append; what it has written is never looked at here.
type capture struct {
	log  *slog.Logger
	path string
	fd   int
	mark int // eventfd that counts the bytes of whole records

	regular bool  // a file that can be cut
	size    int64 // bytes of whole records, as far as known
	max     int64 // bytes that it may have, negative: any number
	ended   bool
}

// minCapture is the least size that makes sense, in bytes.
const minCapture = 4096

// openCapture opens the file. A FIFO is waited for until somebody reads it.
func openCapture(cfg *cli.Config, log *slog.Logger) (*capture, error) {
	if cfg.Pcap == "" {
		return nil, nil
	}
	c := &capture{log: log, path: cfg.Pcap, max: cfg.PcapSize}
	var err error
	c.fd, err = output.Open(cfg.Pcap, output.Options{
		// Non-blocking: a pipe that nobody reads is not to hold up the guest.
		Flags:   unix.O_WRONLY | unix.O_APPEND | unix.O_TRUNC | unix.O_NONBLOCK,
		Guarded: guarded(cfg),
		Waiting: func() { log.Warn("packet capture: waiting for somebody to read it", "path", cfg.Pcap) },
	})
	if errno := unix.Errno(0); errors.As(err, &errno) {
		// As the original: whoever wants a guest connected, wants that first.
		log.Warn("no packet capture", "path", cfg.Pcap, "error", err.Error()+output.Hint(err))
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("packet capture %s: %w", cfg.Pcap, err)
	}
	if c.mark, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("packet capture: eventfd: %w", err)
	}
	c.regular = output.Regular(c.fd)
	if n := output.SizeLimit(); c.regular && n >= 0 && (c.max < 0 || n < c.max) {
		c.max = n
	}
	if c.regular && c.max >= 0 && c.max < minCapture {
		return nil, fmt.Errorf("packet capture %s: the limit on file sizes (ulimit -f) is %d bytes: raise it", cfg.Pcap, c.max)
	}
	return c, nil
}

// bound is the size of file that a worker may write, which its kernel enforces.
func (c *capture) bound() int64 {
	if c == nil {
		return 0
	}
	return c.max
}

// send hands the file to a new worker.
func (c *capture) send(control int) error {
	if c == nil || c.ended {
		return nil
	}
	mark := ipc.Capture{Flags: ipc.CaptureMark}
	if err := ipc.Send(control, mark.Encode(), c.mark); err != nil {
		return err
	}
	rec := ipc.Capture{Room: -1}
	if c.size > 0 {
		rec.Flags = ipc.CaptureAppend
	}
	if c.max >= 0 {
		rec.Room = max(c.max-c.size, 0)
	}
	return ipc.Send(control, rec.Encode(), c.fd)
}

// workerGone cuts off the part of a record that a worker has left at its end, so
// that the next goes on behind a whole one. The count is believed only as far as
// it cuts no more than a worker may have had in hand. So one that was taken over
// takes back nothing that it has written before.
func (c *capture) workerGone() {
	if c == nil || c.ended {
		return
	}
	whole := c.size
	var b [8]byte
	if n, err := unix.Read(c.mark, b[:]); err == nil && n == len(b) {
		whole += int64(min(binary.NativeEndian.Uint64(b[:]), math.MaxInt64/2))
	}
	if !c.regular {
		c.end("half a record may have been written by the worker that has ended, and " + c.path + " is no file that can be cut")
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(c.fd, &st); err != nil {
		c.end(err.Error())
		return
	}
	switch torn := st.Size - whole; {
	case whole < c.size || torn < 0 || torn > ipc.CaptureBuffer:
		c.end("what the worker has written is not what it says")
		return
	case torn > 0:
		if err := unix.Ftruncate(c.fd, whole); err != nil {
			c.end(err.Error())
			return
		}
	}
	c.size = whole
}

// end ends the capture for good. What is in the file stays.
func (c *capture) end(why string) {
	c.ended = true
	c.log.Warn("packet capture ended", "cause", why)
}
