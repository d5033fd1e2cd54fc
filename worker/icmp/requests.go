// SPDX-License-Identifier: Apache-2.0

package icmp

// Bounds on requests that wait for sockets: of all flows, and of one.
const (
	maxRequests = 64
	maxWaiting  = 4
)

// waiting are the requests of one flow, in order: indices, plus one, of slots.
type waiting struct {
	slots [maxWaiting]uint8
	n     uint8
}

// requests holds those that wait. Its memory is touched as it is needed, the
// lowest slots first.
type requests struct {
	mem      []byte
	size     [maxRequests]uint16
	ttl, tos [maxRequests]uint8
	free     []uint8
}

func (r *requests) init() {
	r.mem = make([]byte, maxRequests*bufferSize)
	r.free = make([]uint8, 0, maxRequests)
	for s := maxRequests; s > 0; s-- {
		r.free = append(r.free, uint8(s))
	}
}

// add copies a request. It reports false if there is no room.
func (r *requests) add(w *waiting, msg []byte, ttl, tos uint8) bool {
	if w.n == maxWaiting || len(r.free) == 0 || len(msg) >= bufferSize {
		return false
	}
	s := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	w.slots[w.n] = s
	w.n++
	copy(r.mem[int(s-1)*bufferSize:], msg)
	r.size[s-1], r.ttl[s-1], r.tos[s-1] = uint16(len(msg)), ttl, tos
	return true
}

// first is the request that waits for longest; it stays.
func (r *requests) first(w *waiting) (msg []byte, ttl, tos uint8, ok bool) {
	if w.n == 0 {
		return nil, 0, 0, false
	}
	s := int(w.slots[0]) - 1
	return r.mem[s*bufferSize:][:r.size[s]], r.ttl[s], r.tos[s], true
}

// drop removes the request that waits for longest.
func (r *requests) drop(w *waiting) {
	if w.n > 0 {
		r.free = append(r.free, w.slots[0])
		copy(w.slots[:], w.slots[1:w.n])
		w.n--
	}
}

func (r *requests) clear(w *waiting) {
	for w.n > 0 {
		r.drop(w)
	}
}
