// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"

	"aldente/ipc"
)

// The broker judges each address before a guest is told of it, and says how far that holds:
// for addresses around it, and all names that the same rules by name fit. Where it is known
// to hold for all of an answer, the answer goes out at once. The broker is told as ever, and
// before the guest: what it finds in its channel counts before it refuses a connection. So
// no name gains anything by that which it had not, and the broker still judges where the
// guest may connect.

const (
	// maxAround is how many places are known; then all are found anew.
	maxAround = 256
	// maxAhead is how many answers may be out that the broker has not confirmed. It looks
	// at more of them than that before it refuses a connection.
	maxAhead = 32
)

// around is what the broker has said holds beyond what it was asked of.
type around struct {
	known []place
	told  map[uint32]told // answers that are out, by the number of their Named
	rules int             // how often all was forgotten
}

// told is an answer that is out.
type told struct {
	until int64  // that the broker's word is waited for
	mask  uint64 // that word, as far as is known
}

// place is a number of addresses that may be told for names that some rules fit.
type place struct {
	fitting string
	addr    [16]byte
	bits    uint8
}

func (k *around) forget() {
	k.known, k.rules = k.known[:0], k.rules+1
}

// add notes a place, if it is not part of one.
func (k *around) add(p place) {
	if p.bits == 0 || k.covers(p.fitting, p.addr) {
		return
	}
	if len(k.known) == maxAround {
		k.known = k.known[:0]
	}
	k.known = append(k.known, p)
}

func (k *around) covers(fitting string, a [16]byte) bool {
	for i := range k.known {
		if p := &k.known[i]; p.fitting == fitting && ipc.Around(p.addr, p.bits, a) {
			return true
		}
	}
	return false
}

// mayTell tells whether the broker's word on all addresses of an answer is known.
func (e *Engine) mayTell(fitting string, addrs []netip.Addr) bool {
	if e.cfg.Audit || len(e.around.told) >= maxAhead {
		return false
	}
	for _, a := range addrs {
		if !e.around.covers(fitting, a.As16()) {
			return false
		}
	}
	return true
}

// Forget has the broker be asked of each address anew: the host's own may be others.
func (e *Engine) Forget() {
	e.around.forget()
	e.spoil()
}

// confirmed takes the broker's word on an answer that is out. If it is another than was
// known, nothing that was said before counts any more.
func (e *Engine) confirmed(seq uint32, mask uint64) {
	if t, out := e.around.told[seq]; out {
		delete(e.around.told, seq)
		if mask != t.mask {
			e.around.forget()
		}
	}
}

// overdue gives up waiting for words of the broker's that have not come.
func (e *Engine) overdue(now int64) {
	for seq, t := range e.around.told {
		if t.until <= now {
			delete(e.around.told, seq)
		} else {
			e.arm(t.until)
		}
	}
}
