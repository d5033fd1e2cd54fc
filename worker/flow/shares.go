// SPDX-License-Identifier: Apache-2.0

package flow

// Share says what a descriptor is for.
type Share uint8

// Shares of the descriptors that a lane may hold.
const (
	ShareOut    Share = iota // TCP, from the guest
	ShareIn                  // TCP, to the guest
	ShareUDP                 // by the guest's link, both ways
	ShareBypass              // UDP past it, which the host's own users fill
	ShareEcho                // both families
	shares
)

// Shares divides the descriptors that a lane may hold. A part is kept for each
// kind of flow; what is left any kind may take. So none can be shut out by
// another, or by what strangers send.
type Shares struct {
	total int
	least [shares]int
	used  [shares]int
	held  int // sum over all of the greater of used and least

	most  int // flows, whatever they hold; zero: any number
	flows int

	returned bool // something was, since Returned was asked
}

// NewShares divides total descriptors.
func NewShares(total int) *Shares {
	s := &Shares{total: total}
	s.least = [shares]int{ShareOut: total / 4, ShareIn: total * 3 / 32, ShareUDP: total / 8, ShareBypass: total / 32, ShareEcho: total / 32}
	s.recount()
	return s
}

func (s *Shares) recount() {
	s.held = 0
	for k := range s.used {
		s.held += max(s.used[k], s.least[k])
	}
}

// Reduce takes n descriptors away that are for nothing of the above; a negative n
// returns them.
func (s *Shares) Reduce(n int) {
	if s != nil {
		s.total -= n
	}
}

// May tells whether k may take n more. Everything is allowed where s is nil.
func (s *Shares) May(k Share, n int) bool {
	if s == nil {
		return true
	}
	more := max(s.used[k]+n, s.least[k]) - max(s.used[k], s.least[k])
	if s.most > 0 && s.flows+flowsOf(n) > s.most {
		return false
	}
	// What was promised to a kind is given also when listeners, which come at any
	// time, have made the total smaller.
	return more == 0 || s.held+more <= s.total
}

// Take notes that k holds n more; a negative n, that it holds fewer.
func (s *Shares) Take(k Share, n int) {
	if s != nil {
		s.held -= max(s.used[k], s.least[k])
		s.used[k] += n
		s.flows += flowsOf(n)
		s.held += max(s.used[k], s.least[k])
		s.returned = s.returned || n < 0
	}
}

// Bound has no more than so many flows take descriptors, however many there are.
func (s *Shares) Bound(flows int) { s.most = flows }

// flowsOf is how many flows n descriptors are of: those past the link have two.
func flowsOf(n int) int {
	if n < 0 {
		return -flowsOf(-n)
	}
	return (n + 1) / 2
}

// Lend returns what f says if k held one less, for whoever holds a part already and
// asks whether there is room for what would hold it instead. Nothing is given back.
func (s *Shares) Lend(k Share, f func() bool) bool {
	if s == nil {
		return f()
	}
	returned := s.returned
	s.Take(k, -1)
	ok := f()
	s.Take(k, 1)
	s.returned = returned
	return ok
}

// Returned tells whether anything was given back since the last call. A flow may
// have held a part without a descriptor, whose end nobody hears of.
func (s *Shares) Returned() bool {
	if s == nil || !s.returned {
		return false
	}
	s.returned = false
	return true
}

// Used is how many descriptors k holds.
func (s *Shares) Used(k Share) int { return s.used[k] }
