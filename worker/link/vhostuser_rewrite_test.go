// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aldente/test/vhost/frontend"
	"aldente/worker/packet"
)

// rewrite has the guest write headers of all kinds over the buffer of its frames, without
// an end: each time it is another frame that begins there.
func rewrite(buffer []byte, stop *atomic.Bool) {
	var kinds [][]byte
	for _, v4 := range []bool{false, true} {
		s := tcpSuper(v4, packet.ACK, 0, random(3000), 1448)
		vnet := make([]byte, vnetLen)
		encodeVirtio(vnet, &s.o, 0)
		whole := slices.Concat(vnet, s.headers, s.payload[:300])
		longer := slices.Clone(whole) // TCP options up to where they may end
		longer[vnetLen+len(s.headers)-20+12] |= 0xf0
		other := slices.Clone(whole) // UDP, or what only IP knows
		other[vnetLen+14+9], other[vnetLen+14+6] = 17, 17
		odd := slices.Clone(whole)
		for i := range vnetLen {
			odd[i] = byte(7 * i)
		}
		kinds = append(kinds, whole, longer, other, odd, random(400))
	}
	for i := 0; !stop.Load(); i++ {
		copy(buffer, kinds[i%len(kinds)])
	}
}

// TestVhostUserRewritten: whatever a guest writes to a frame while it is in our hands, what was
// read of its headers is what is read of them later, and they are all there.
func TestVhostUserRewritten(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all}, 4096)
	s := tcpSuper(true, packet.ACK, 0, random(20000), 1448)
	vnet := make([]byte, vnetLen)
	encodeVirtio(vnet, &s.o, 0)
	frame := slices.Concat(s.headers, s.payload)

	sent := make(chan error, 1)
	go func() { sent <- r.g.Send(0, vnet, frame) }()
	if all, _ := r.receive(sent); len(all) != 1 {
		t.Fatalf("%d frames", len(all))
	}
	var buffer []byte
	for _, m := range r.g.Mem.Regions {
		b := r.g.Mem.At(m.Guest, m.Size)
		if at := bytes.Index(b, frame); at >= vnetLen {
			buffer = b[at-vnetLen : at+len(frame)]
		}
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { rewrite(buffer, &stop) })
	wg.Go(func() {
		var err error
		for i := 0; i < 150 && err == nil; i++ {
			err = r.g.Send(0, vnet, frame[:len(frame)-i*120])
		}
		sent <- err
	})
	defer wg.Wait()
	defer stop.Store(true)
	taken, split := 0, 0
	for deadline := time.Now().Add(20 * time.Second); ; {
		select {
		case err := <-sent:
			if err != nil {
				t.Fatal(err)
			}
			if taken < 30 || split == 0 {
				t.Errorf("%d frames, %d of them in pieces, are too few to say anything", taken, split)
			}
			return
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d frames, and no end", taken)
		}
		for more := r.events() || r.v.Sleep(); more; more = more || r.v.Sleep() {
			var err error
			if more, err = r.v.Receive(r.b); err != nil {
				t.Fatal(err)
			}
			for i := range r.b.Frames {
				taken++
				if f := &r.b.Frames[i]; f.More != nil {
					split++
				}
			}
			steady(t, r.b.Frames)
		}
		r.v.Flush()
	}
}

// steady compares what is read of frames now with what is read of them later.
func steady(t *testing.T, frames []Frame) {
	type reading struct {
		data []byte
		o    packet.Offload
		p    packet.Packet
		err  error
		tcp  packet.TCP
		left int
	}
	read := func(f *Frame) (r reading) {
		r.data, r.o = bytes.Clone(f.Data), f.Offload
		if r.err = r.p.DecodeSplit(f.Data, f.More); r.err == nil && r.p.Proto == packet.ProtoTCP {
			r.err = r.p.TCP(&r.tcp)
		}
		for _, b := range f.More {
			r.left += len(b)
		}
		return r
	}
	var before []reading
	for i := range frames {
		before = append(before, read(&frames[i]))
	}
	time.Sleep(100 * time.Microsecond)
	for i := range frames {
		f := &frames[i]
		was, is := before[i], read(f)
		p, q := &was.p, &is.p
		a, b := &was.tcp, &is.tcp
		if !bytes.Equal(was.data, is.data) || was.o != is.o || was.left != is.left || (was.err == nil) != (is.err == nil) ||
			p.Proto != q.Proto || p.L3 != q.L3 || p.L4 != q.L4 || p.End != q.End || p.Beyond != q.Beyond ||
			a.SrcPort != b.SrcPort || a.Seq != b.Seq || a.Flags != b.Flags || len(a.Payload) != len(b.Payload) || a.Beyond != b.Beyond {
			t.Fatalf("a frame has changed: %+v is %+v", was, is)
		}
		o, end := &f.Offload, len(f.Data)
		if o.Flags&packet.OffloadNeedsChecksum != 0 && int(o.CsumStart)+int(o.CsumOffset)+2 > end || int(o.HdrLen) > end {
			t.Fatalf("%+v of a frame of %d bytes", o, end)
		}
		if n := packet.TCPHeaders(f.Data); f.More != nil && (n == 0 || n > end) {
			t.Fatalf("headers of %d bytes in a frame whose first %d are copied", n, end)
		}
	}
}
