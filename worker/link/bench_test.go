// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

func BenchmarkCut(b *testing.B) {
	for name, s := range map[string]*super{
		"tcp4": tcpSuper(false, packet.ACK, 0, random(65400), 1448),
		"tcp6": tcpSuper(true, packet.ACK, 0, random(65400), 1428),
		"udp4": udpSuper(false, random(65400), 1472),
	} {
		b.Run(name, func(b *testing.B) {
			var c cutter
			head := make([]byte, packet.MaxHeaders)
			b.SetBytes(int64(len(s.payload)))
			for b.Loop() {
				c.start(&s.o, s.headers, s.payload, 1500)
				for c.more() {
					c.next(head)
				}
			}
		})
	}
}

// blocking makes the peer's end wait, for the thread that plays QEMU.
func blocking(b *testing.B, fd int) {
	b.Helper()
	if err := unix.SetNonblock(fd, false); err != nil {
		b.Fatal(err)
	}
}

func waitFor(fd int32, events int16) {
	unix.Poll([]unix.PollFd{{Fd: fd, Events: events}}, -1)
}

// BenchmarkSend pumps super-frames to a peer that only reads. "raw" is the
// same bytes by plain writes: what the kernel allows.
func BenchmarkSend(b *testing.B) {
	for _, mtu := range []int{1500, 65520, 0} {
		name := fmt.Sprint("mtu=", mtu)
		if mtu == 0 {
			name = "raw"
		}
		for _, buffer := range []int{0, 1 << 20} {
			b.Run(fmt.Sprintf("%s/buffer=%d", name, buffer), func(b *testing.B) {
				s, peer, done := pair(b, mtu, buffer)
				defer done()
				blocking(b, peer)
				go func() {
					buf := make([]byte, 256<<10)
					for {
						if n, err := unix.Read(peer, buf); n <= 0 && err != unix.EINTR {
							return
						}
					}
				}()
				super := tcpSuper(false, packet.ACK, 0, random(65480), max(mtu, 100)-40)
				b.SetBytes(int64(len(super.payload)))
				for b.Loop() {
					if mtu == 0 {
						pumpRaw(s.fd, super.payload)
						continue
					}
					s.Send(&super.o, super.headers, super.payload)
					s.Flush()
					for s.WantWrite() {
						waitFor(s.fd, unix.POLLOUT)
						s.Writable()
					}
				}
				if s.Counters().Dropped != 0 {
					b.Errorf("%+v", *s.Counters())
				}
			})
		}
	}
}

func pumpRaw(fd int32, p []byte) {
	for len(p) > 0 {
		n, e := write(fd, p)
		if e != 0 {
			waitFor(fd, unix.POLLOUT)
		}
		p = p[n:]
	}
}

// BenchmarkReceive takes frames from a peer that only writes, one frame for
// each write as QEMU does, and many.
func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{66, 1514, 65534} {
		for _, each := range []int{1, 64 << 10} {
			b.Run(fmt.Sprintf("frame=%d/write=%d", size, each), func(b *testing.B) {
				s, peer, done := pair(b, 1500, 0)
				blocking(b, peer)
				wire := framed(random(size))
				for len(wire) < each {
					wire = append(wire, framed(random(size))...)
				}
				var stop atomic.Bool
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for !stop.Load() {
						for rest := wire; len(rest) > 0; {
							n, err := unix.Write(peer, rest)
							if n <= 0 && err != unix.EINTR {
								return
							}
							rest = rest[max(n, 0):]
						}
					}
				}()
				batch, frames := NewBatch(), 0
				b.SetBytes(int64(size))
				for b.Loop() {
					for frames == 0 {
						more, err := s.Receive(batch)
						if err != nil {
							b.Fatal(err)
						}
						if frames = len(batch.Frames); frames == 0 && !more {
							waitFor(s.fd, unix.POLLIN)
						}
					}
					frames--
				}
				stop.Store(true)
				done()
				<-ended
			})
		}
	}
}
