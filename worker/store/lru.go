// SPDX-License-Identifier: Apache-2.0

package store

// LRU keeps the flows of a table in the order in which they were last used, so
// that the one that has been idle longest can make room. Nothing is allocated
// after NewLRU.
type LRU struct {
	links          []lruLink
	newest, oldest uint32 // None: there are no flows
}

type lruLink struct{ newer, older uint32 }

// NewLRU makes an empty order for flows with numbers below n.
func NewLRU(n int) LRU {
	return LRU{links: make([]lruLink, n), newest: None, oldest: None}
}

// Oldest is the flow that has been unused for longest, None if there is none.
func (a *LRU) Oldest() uint32 { return a.oldest }

// Newer is the flow that was used next after i, None if i was used last.
func (a *LRU) Newer(i uint32) uint32 { return a.links[i].newer }

// Add puts a flow that is not in the order at its new end.
func (a *LRU) Add(i uint32) {
	a.links[i] = lruLink{newer: None, older: a.newest}
	if a.newest != None {
		a.links[a.newest].newer = i
	} else {
		a.oldest = i
	}
	a.newest = i
}

// Remove takes a flow out of the order.
func (a *LRU) Remove(i uint32) {
	l := a.links[i]
	if l.newer != None {
		a.links[l.newer].older = l.older
	} else {
		a.newest = l.older
	}
	if l.older != None {
		a.links[l.older].newer = l.newer
	} else {
		a.oldest = l.newer
	}
}

// Touch notes that a flow is in use.
func (a *LRU) Touch(i uint32) {
	if a.newest != i {
		a.Remove(i)
		a.Add(i)
	}
}
