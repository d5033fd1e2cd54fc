// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

// collect writes datagrams of size bytes, as translators do.
func collect(w *Writer, o *Socket, b *Batch, data []byte, size int) (sent int) {
	for more := true; more; more = len(data) > 0 {
		part, alone := o.Cut(data, size)
		data = data[len(part):]
		if !alone && b.Add(part, size) {
			continue
		}
		sent += w.Write(0, o, b)
		if !alone {
			b.Add(part, size)
		} else if w.WriteOne(0, o, part) {
			sent++
		}
	}
	return sent
}

// Whatever is cut and put together, the socket gets the datagrams that were
// written, in order, and never a write that no kernel would take. What a path or a
// bound does not let travel together goes alone.
func TestCollect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := flowtest.New()
		s := host.Socket()
		s.Path = rapid.SampledFrom([]int{0, 0, 100, 1400}).Draw(t, "path")
		together := rapid.SampledFrom([]uint16{0, 0, 99, 16 << 10}).Draw(t, "together")
		w, o, b := NewWriter(host), NewSocket(s.FD, together), new(Batch)
		sizes := rapid.SampledFrom([]int{0, 1, 99, 100, 101, 1400, 1401, 9000, 32753, 32754, 65507, 65527})
		var want [][]byte
		sent := 0
		for k := range rapid.IntRange(1, 60).Draw(t, "frames") {
			size := sizes.Draw(t, "size")
			n := size
			if size > 0 && size < 33000 && rapid.Bool().Draw(t, "joined") {
				n = rapid.IntRange(1, min(65507, 100*size)).Draw(t, "bytes")
			}
			data := bytes.Repeat([]byte{byte(k), byte(n), byte(n >> 8)}, n/3+1)[:n]
			for more, rest := true, data; more; more = len(rest) > 0 {
				one := rest[:min(size, len(rest))]
				rest = rest[len(one):]
				want = append(want, one)
			}
			sent += collect(&w, &o, b, data, size)
		}
		sent += w.Write(0, &o, b)
		for _, one := range s.Writes {
			n := 0
			for _, d := range (&flowtest.Socket{Writes: []flowtest.Write{one}}).Sent() {
				n++
				if together != 0 && n > 1 && len(d) > int(together) {
					t.Fatalf("%d bytes together with others", len(d))
				}
			}
			if n > MaxSegments || n > 1 && len(one.Data) > MaxWrite {
				t.Fatalf("a write of %d datagrams, %d bytes", n, len(one.Data))
			}
		}
		if got := s.Sent(); !slices.EqualFunc(got, want, bytes.Equal) || sent != len(want) {
			t.Fatalf("%d datagrams, %d counted, want %d", len(got), sent, len(want))
		}
		if b.Count() != 0 || b.n != 0 {
			t.Fatal("the batch is not empty")
		}
	})
}

// strict is a host on which nobody writes to a socket that is gone.
type strict struct {
	*flowtest.Host
	t *testing.T
}

func (h strict) Write(fd int32, b []byte) (int, syscall.Errno) {
	if fd < 0 {
		h.t.Error("a write without a socket")
	}
	return h.Host.Write(fd, b)
}

// What a failed write comes to: tried again where an earlier datagram may be the
// reason, told where the guest is to hear of it, and never on a socket that is gone.
func TestWriteFails(t *testing.T) {
	for _, e := range []syscall.Errno{
		syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, syscall.EINVAL, syscall.EMSGSIZE, syscall.EIO,
		syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
	} {
		again := !slices.Contains([]syscall.Errno{syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, syscall.EINVAL}, e)
		for _, gone := range []bool{false, true} {
			host := flowtest.New()
			s := host.Socket()
			w, o := NewWriter(strict{host, t}), NewSocket(s.FD, 0)
			pending, failed := 0, 0
			w.Pending = func(i uint32) {
				if pending++; i != 7 {
					t.Errorf("flow %d", i)
				}
				if gone {
					o.FD = -1
				}
			}
			w.Failed = func(i uint32, got syscall.Errno, data []byte) {
				if failed++; i != 7 || got != e || string(data) != "x" {
					t.Errorf("flow %d: %v, %q", i, got, data)
				}
			}
			s.WriteErrs = []syscall.Errno{e}
			if sent := w.WriteOne(7, &o, []byte("x")); sent != (again && !gone) {
				t.Errorf("%v, gone %t: sent %t", e, gone, sent)
			}
			if (pending == 1) != again || (failed == 1) != !again {
				t.Errorf("%v, gone %t: %d looks at the queue, %d failures", e, gone, pending, failed)
			}
		}
		// Without anybody to tell.
		host := flowtest.New()
		s := host.Socket()
		w, o := NewWriter(host), NewSocket(s.FD, 0)
		s.WriteErrs = []syscall.Errno{e, e}
		if w.WriteOne(7, &o, nil) || !w.WriteOne(7, &o, nil) && again {
			t.Errorf("%v: not tried twice", e)
		}
	}
}

// A batch that fails as such goes one by one, as far as there is a socket; one that
// fails for want of room does not.
func TestBatchFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		errs []syscall.Errno
		opt  syscall.Errno
		gone bool
		sent int
	}{
		{"larger than the path", []syscall.Errno{syscall.EINVAL}, 0, false, 3},
		{"device that cannot", []syscall.Errno{syscall.EIO, syscall.EIO}, 0, false, 3},
		{"no segmentation", nil, syscall.ENOPROTOOPT, false, 3},
		{"no room", []syscall.Errno{syscall.EAGAIN}, 0, false, 0},
		{"one of them", []syscall.Errno{syscall.EINVAL, 0, syscall.EAGAIN}, 0, false, 2},
		{"the flow ends", []syscall.Errno{syscall.EINVAL, syscall.ECONNREFUSED}, 0, true, 0},
		{"the flow ends at once", []syscall.Errno{syscall.EIO}, 0, true, 0},
	} {
		host := flowtest.New()
		s := host.Socket()
		w, o, b := NewWriter(host), NewSocket(s.FD, 0), new(Batch)
		if tt.gone {
			w.Pending = func(uint32) { o.FD = -1 }
		}
		s.WriteErrs, s.OptionErr = tt.errs, tt.opt
		if !b.Add(make([]byte, 100), 40) || b.Add(make([]byte, 40), 40) || b.Count() != 3 {
			t.Fatalf("%+v", b)
		}
		if sent := w.Write(0, &o, b); sent != tt.sent || len(s.Sent()) != tt.sent || b.Count() != 0 {
			t.Errorf("%s: %d sent, %d counted", tt.name, len(s.Sent()), sent)
		}
		// What has shown to need it goes alone from then on, smaller ones do not.
		if _, alone := o.Cut(make([]byte, 80), 40); alone != (tt.sent > 0 || tt.name == "the flow ends") {
			t.Errorf("%s: alone %t", tt.name, alone)
		}
		if _, alone := o.Cut(make([]byte, 80), 39); alone {
			t.Errorf("%s: a smaller one goes alone", tt.name)
		}
	}
}

func TestSetHeader(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		host := flowtest.New()
		s := host.Socket()
		w, o := NewWriter(host), NewSocket(s.FD, 0)
		w.SetHeader(&o, v4, packet.DefaultTTL, 0)
		if s.SetCalls != 0 {
			t.Error("set what is so")
		}
		w.SetHeader(&o, v4, 3, 0)
		w.SetHeader(&o, v4, 3, 0xb8)
		w.SetHeader(&o, v4, 3, 0xb8)
		ttl, class := s.Options[flow.OptionHopLimit], s.Options[flow.OptionTrafficClass]
		if v4 {
			ttl, class = s.Options[flow.OptionTTL], s.Options[flow.OptionTOS]
		}
		if ttl != 3 || class != 0xb8 || s.SetCalls != 2 {
			t.Errorf("IPv4 %t: %v in %d calls", v4, s.Options, s.SetCalls)
		}
	}
}

func TestWriterAllocs(t *testing.T) {
	host := flowtest.New()
	host.Quiet = true
	w, o, b := NewWriter(host), NewSocket(host.Socket().FD, 0), new(Batch)
	data := make([]byte, 1400)
	if n := testing.AllocsPerRun(100, func() {
		for range MaxSegments + 10 {
			collect(&w, &o, b, data, len(data))
		}
		collect(&w, &o, b, data[:0], 0)
		w.Write(0, &o, b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCollect is 32 datagrams to one socket, one by one and as UDP_GRO joins
// them.
func BenchmarkCollect(b *testing.B) {
	for name, joined := range map[string]bool{"single": false, "joined": true} {
		b.Run(name, func(b *testing.B) {
			host := flowtest.New()
			host.Quiet = true
			w, o, batch := NewWriter(host), NewSocket(host.Socket().FD, 0), new(Batch)
			data := make([]byte, 32*1400)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if joined {
					collect(&w, &o, batch, data, 1400)
				} else {
					for k := range 32 {
						collect(&w, &o, batch, data[k*1400:(k+1)*1400], 1400)
					}
				}
				w.Write(0, &o, batch)
			}
		})
	}
}
