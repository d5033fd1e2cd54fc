// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// What strangers have sent is told from what the peer has, both in order, and no two
// datagrams come to share memory.
func TestFromPeer(t *testing.T) {
	peer, other := packet.AddrFrom4([4]byte{192, 0, 2, 1}), packet.AddrFrom4([4]byte{192, 0, 2, 2})
	for _, tt := range []struct{ came, own, others string }{
		{"", "", ""}, {"pqu", "pqu", ""}, {"st", "", "st"}, {"spqt", "pq", "st"}, {"pstqvu", "pqu", "stv"}, {"stvpqu", "pqu", "stv"},
	} {
		d := make([]flow.Datagram, len(tt.came))
		Buffers(d)
		for k, name := range []byte(tt.came) {
			d[k].N = copy(d[k].Buf, []byte{name})
			switch name {
			case 'p', 'q':
				d[k].From, d[k].FromPort = peer, 53
			case 's', 't':
				d[k].From, d[k].FromPort = other, 53
			case 'v':
				d[k].From, d[k].FromPort = peer, 54
			}
		}
		own, others := FromPeer(d, peer, 53)
		if got := names(own); got != tt.own {
			t.Errorf("%q: own %q, want %q", tt.came, got, tt.own)
		}
		if got := names(others); got != tt.others {
			t.Errorf("%q: others %q, want %q", tt.came, got, tt.others)
		}
		seen := map[*byte]bool{}
		for k := range d {
			if seen[&d[k].Buf[0]] || len(d[k].Buf) != BufferSize || cap(d[k].Buf) != BufferSize {
				t.Errorf("%q: datagrams share memory", tt.came)
			}
			seen[&d[k].Buf[0]] = true
		}
	}
}

func names(d []flow.Datagram) string {
	var all []byte
	for k := range d {
		all = append(all, d[k].Buf[:d[k].N]...)
	}
	return string(all)
}

func TestLifetime(t *testing.T) {
	for _, tt := range []struct {
		idle, stream uint32
		want         [2]int64
	}{
		{0, 0, [2]int64{30e9, 120e9}}, {7, 0, [2]int64{7e9, 120e9}}, {0, 9, [2]int64{30e9, 9e9}},
	} {
		g := flow.Guest{Config: ipc.Config{UDPIdle: tt.idle, UDPStream: tt.stream}}
		if got := [2]int64{Lifetime(&g, false), Lifetime(&g, true)}; got != tt.want {
			t.Errorf("%d and %d s: %v", tt.idle, tt.stream, got)
		}
	}
}

// What may travel together.
func TestRun(t *testing.T) {
	const cut, joined = -1, -2
	for _, tt := range []struct {
		sizes       []int
		limit, most int
		want        int
	}{
		{[]int{100}, 1000, 1000, 1},
		{[]int{100, 100, 100}, 1000, 1000, 3},
		{[]int{100, 100, 40, 40}, 1000, 1000, 3},
		{[]int{100, 101}, 1000, 1000, 1},
		{[]int{100, 100, 0}, 1000, 1000, 2},
		{[]int{0, 0}, 1000, 1000, 1},
		{[]int{100, 100}, 99, 1000, 1},
		{[]int{100, 100, 100}, 100, 299, 2},
		{[]int{cut, 100}, 1000, 1000, 1},
		{[]int{100, cut}, 1000, 1000, 1},
		{[]int{joined, 100}, 1000, 1000, 1},
		{[]int{100, joined}, 1000, 1000, 1},
	} {
		d := make([]flow.Datagram, len(tt.sizes))
		for k, n := range tt.sizes {
			d[k] = flow.Datagram{N: n}
			switch n {
			case cut:
				d[k] = flow.Datagram{N: 100, Truncated: true}
			case joined:
				d[k] = flow.Datagram{N: 100, Segment: 50}
			}
		}
		if got := Run(d, tt.limit, tt.most); got != tt.want {
			t.Errorf("%v, at most %d each and %d in all: %d, want %d", tt.sizes, tt.limit, tt.most, got, tt.want)
		}
	}
}

// Who is to be told by nobody loses no room to errors that wait.
func TestDiscard(t *testing.T) {
	q := errorQueue{left: 3, pending: 1}
	var e flow.SocketError
	if Discard(&q, 5, &e); q.left != 0 || q.pending != 0 {
		t.Errorf("%+v", q)
	}
	q = errorQueue{left: 2 * flow.MaxErrors}
	if Discard(&q, 5, &e); q.left != flow.MaxErrors {
		t.Errorf("%+v: not bounded", q)
	}
}
