// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"syscall"
	"testing"
)

// TestBucket: what goes in a time is no more than the rate and what may go at once,
// and who waits until he is told finds something.
func TestBucket(t *testing.T) {
	for _, rate := range []uint64{1000, 125_000, 10_000_000, 5_000_000_000, 1 << 62} {
		p := newPace(rate, 0)
		b := &p.down
		if b.burst < paceLeast || b.rate <= 0 {
			t.Fatalf("rate %d: %+v", rate, *b)
		}
		var now, sent int64
		const end = 10_000_000_000
		for now < end {
			b.refill(now)
			if b.left <= 0 {
				due := b.due()
				if due <= now {
					t.Fatalf("rate %d: at %d due at %d: %+v", rate, now, due, *b)
				}
				b.refill(due)
				if b.left <= 0 {
					t.Fatalf("rate %d: nothing at %d, when it was due: %+v", rate, due, *b)
				}
				now = due
			}
			b.left -= 64 << 10
			sent += 64 << 10
		}
		if most := b.burst + b.rate/1_000_000_000*now + b.rate%1_000_000_000*(now/1_000_000)/1000 + 128<<10; rate < 1<<33 && sent > most {
			t.Errorf("rate %d: %d bytes in %d ns, at most %d", rate, sent, now, most)
		}
		if least := int64(min(rate, 1_000_000_000)) * 9; sent < least && rate > 1_000_000 {
			t.Errorf("rate %d: only %d bytes in ten seconds", rate, sent)
		}
	}
	if newPace(0, 0) != nil || !(*pace)(nil).maySend(0) {
		t.Error("a limit where there is none")
	}
}

// TestCopiesNotPaced: a limit holds up datagrams, and not the copies that are made of them
// for whoever looks at a flow; what that has let through counts.
func TestCopiesNotPaced(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])
	d := &pacedDatagrams{&Lane{pace: newPace(1000, 0)}}
	d.pace.up.left = -1 << 40
	if _, e := d.Write(int32(pair[0]), []byte("datagram")); e != syscall.EAGAIN {
		t.Errorf("over the limit: %v", e)
	}
	if n, e := d.Copy(int32(pair[0]), []byte("copy")); n != 4 || e != 0 {
		t.Errorf("a copy: %d, %v", n, e)
	}
	if n, e := (&pacedStreams{d.Lane}).Copyv(int32(pair[0]), [][]byte{[]byte("co"), []byte("py")}); n != 4 || e != 0 {
		t.Errorf("a copy of a stream: %d, %v", n, e)
	}
	d.Wrote(5)
	if d.pace.up.left != -1<<40-5 {
		t.Errorf("%d are left", d.pace.up.left)
	}
	(&Lane{}).Wrote(5) // without a limit
}
