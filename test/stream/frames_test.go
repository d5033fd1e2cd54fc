// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"aldente/test/machine"
	"aldente/test/netlab"
)

func TestFrameLength(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	p := start(t, lab)
	for _, tt := range []struct {
		length uint32
		closed bool
	}{
		{0, true}, {1, true}, {13, true}, {14, false}, {60, false},
		{65535, false}, {65550, false}, {65589, false}, {65590, true}, {1<<31 - 1, true}, {1 << 31, true}, {1<<32 - 1, true},
	} {
		t.Run(fmt.Sprint(tt.length), func(t *testing.T) {
			c := p.connect(t)
			c.works()
			c.put(binary.BigEndian.AppendUint32(nil, tt.length))
			if tt.closed {
				// What follows may be refused already.
				_, _ = c.Write(make([]byte, 100))
				if !c.ended() {
					t.Error("the connection stays open")
				}
			} else {
				c.put(make([]byte, tt.length))
				c.works()
			}
			c.Close()
			p.nextWorks(t)
		})
	}
}

// TestFrameSplit cuts the stream at every byte: prefix, headers and payload.
func TestFrameSplit(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	c := p.connect(t)
	b := prefixed(arp())
	for i := 1; i < len(b); i++ {
		c.put(b[:i])
		time.Sleep(time.Millisecond)
		c.put(b[i:])
		if !c.answered() {
			t.Fatalf("cut after %d bytes: no answer", i)
		}
	}
	for range 3 {
		for i := range b {
			c.put(b[i : i+1])
			time.Sleep(200 * time.Microsecond)
		}
		if !c.answered() {
			t.Fatal("byte by byte: no answer")
		}
	}
}

// TestManyFrames sends frames of every kind of length in pieces that fit no
// frame.
func TestManyFrames(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	c := p.connect(t)
	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	const asked = 500
	for range asked {
		b = append(b, prefixed(make([]byte, 14+r.IntN(65535-14)))...)
		b = append(b, prefixed(arp())...)
	}
	go func() {
		for len(b) > 0 {
			n := min(1+r.IntN(40000), len(b))
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
			b = b[n:]
		}
	}()
	for i := range asked {
		if !c.answered() {
			t.Fatalf("%d of %d requests answered", i, asked)
		}
	}
}

func TestDisconnectMidFrame(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	p.nextWorks(t)
	pid := p.Worker(t)
	fds, brokerFDs := machine.Descriptors(t, pid), machine.Descriptors(t, p.PID)
	b := prefixed(arp())
	before := memory(t, pid)
	for i := range len(b) {
		c := p.connect(t)
		c.put(b[:i])
		c.Close()
	}
	p.nextWorks(t)
	for range 100 {
		c := p.connect(t)
		c.put(binary.BigEndian.AppendUint32(nil, 65535))
		c.put(make([]byte, 40000))
		c.Close()
	}
	p.nextWorks(t)
	p.unharmed(t, pid, before)
	time.Sleep(50 * time.Millisecond)
	if n := machine.Descriptors(t, pid); n > fds {
		t.Errorf("the worker has %d descriptors open, before %d", n, fds)
	}
	if n := machine.Descriptors(t, p.PID); n > brokerFDs {
		t.Errorf("the broker has %d descriptors open, before %d", n, brokerFDs)
	}
}

// unharmed fails the test if the worker is another than before or has grown by
// more than 4 MiB.
func (p *passt) unharmed(t *testing.T, pid int, before int64) {
	t.Helper()
	if now := p.Worker(t); now != pid {
		t.Fatalf("worker %d has become %d", pid, now)
	}
	after := memory(t, pid)
	t.Logf("worker: %d KiB, then %d KiB", before, after)
	if after > before+4<<10 {
		t.Errorf("the worker has grown from %d to %d KiB", before, after)
	}
}

// TestNeverReads has a client ask and ask and not take the answers.
func TestNeverReads(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	many := make([]byte, 0, 64<<10)
	for len(many) < 60<<10 {
		many = append(many, prefixed(arp())...)
	}
	ask := func() {
		c := p.connect(t)
		c.works()
		for range 200 { // 12 MiB of answers
			_ = c.SetWriteDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Write(many); err != nil {
				t.Fatalf("a client that does not read is not read from: %v", err)
			}
		}
		c.works() // what was queued comes, and then this answer
		c.Close()
		p.nextWorks(t)
	}
	ask()
	pid := p.Worker(t)
	before := memory(t, pid)
	for range 5 {
		ask()
	}
	p.unharmed(t, pid, before)
}

// TestFlood sends noise as fast as it is taken.
func TestFlood(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	p.nextWorks(t)
	pid := p.Worker(t)
	flood := func(r *rand.Rand) {
		c := p.connect(t)
		noise := make([]byte, 1<<20)
		for i := range noise {
			noise[i] = byte(r.Uint32())
		}
		types := []uint16{0x0800, 0x0806, 0x86dd, 0x8100, 0x88cc}
		first := []byte{0x45, 0, 0x60, 0x81, 0x02}
		var b []byte
		for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
			b = b[:0]
			for len(b) < 512<<10 {
				n := 14 + r.IntN(1600)
				if r.IntN(8) == 0 {
					n = 14 + r.IntN(65535-14)
				}
				at := len(b)
				b = append(b, prefixed(noise[r.IntN(len(noise)-n):][:n])...)
				k := r.IntN(len(types))
				binary.BigEndian.PutUint16(b[at+4+12:], types[k])
				if n > 14 {
					b[at+4+14] = first[k]
				}
			}
			_ = c.SetWriteDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		p.nextWorks(t)
	}
	r := rand.New(rand.NewPCG(3, 4))
	flood(r)
	before := memory(t, pid)
	for range 3 {
		flood(r)
	}
	p.unharmed(t, pid, before)
}
