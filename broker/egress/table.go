// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"aldente/ipc/domain"
)

// maxPairs bounds the table. Names come from a guest, and addresses from whoever answers.
const maxPairs = 16384

// noRule is the number that pairs have which stand for no rule by name: for the log, and
// for rules to come.
const noRule = 0

// table says which addresses stand for a rule by name, and until when. Each pair of rule
// and address is there once, with the name that has led to it last; pairs of one
// address are chained. When it is full, the pair goes that was granted the longest ago.
type table struct {
	mu     sync.RWMutex
	heads  map[netip.Addr]int32 // address → the first of its pairs
	pairs  []pair               // pair 0 is the head of the list by age: newer is the oldest
	most   int                  // zero: maxPairs
	free   int32                // chain of unused pairs, by next; 0: none
	used   int
	lastID uint32
	clock  func() time.Time // nil: time.Now
	begin  time.Time        // what until is counted from
}

// pair is one rule and one address.
type pair struct {
	addr         netip.Addr
	name         domain.Name
	until        time.Duration // since the table's beginning
	rule         uint32
	next         int32 // of the address
	newer, older int32
}

// now is the time since the table's beginning. The monotonic clock counts.
func (t *table) now() time.Duration {
	at := time.Now
	if t.clock != nil {
		at = t.clock
	}
	return at().Sub(t.begin)
}

// init makes the table when something is granted for the first time.
func (t *table) init() {
	if t.heads != nil {
		return
	}
	t.heads, t.pairs = map[netip.Addr]int32{}, make([]pair, 1)
	if t.most == 0 {
		t.most = maxPairs
	}
	if t.begin = time.Now(); t.clock != nil {
		t.begin = t.clock()
	}
}

// find returns the pair of a rule and an address, 0 if there is none.
func (t *table) find(a netip.Addr, rule uint32) int32 {
	for i := t.heads[a]; i != 0; i = t.pairs[i].next {
		if t.pairs[i].rule == rule {
			return i
		}
	}
	return 0
}

// enter has an address stand for a rule, for as long as any answer has said.
func (t *table) enter(rule uint32, a netip.Addr, name domain.Name, until time.Duration) {
	i := t.find(a, rule)
	if i == 0 {
		if t.used == t.most {
			t.drop(t.pairs[0].newer)
		}
		i = t.take()
		t.pairs[i] = pair{addr: a, rule: rule, next: t.heads[a]}
		t.heads[a] = i
	} else {
		t.unlink(i)
	}
	p := &t.pairs[i]
	p.name, p.until = name, max(p.until, until)
	last := t.pairs[0].older
	p.older, p.newer = last, 0
	t.pairs[last].newer, t.pairs[0].older = i, i
}

// take returns an unused pair.
func (t *table) take() int32 {
	t.used++
	if i := t.free; i != 0 {
		t.free = t.pairs[i].next
		return i
	}
	t.pairs = append(t.pairs, pair{})
	return int32(len(t.pairs) - 1)
}

// unlink takes a pair out of the list by age.
func (t *table) unlink(i int32) {
	p := &t.pairs[i]
	t.pairs[p.older].newer, t.pairs[p.newer].older = p.newer, p.older
}

// drop forgets a pair.
func (t *table) drop(i int32) {
	t.unlink(i)
	p := &t.pairs[i]
	switch at := t.heads[p.addr]; {
	case at != i:
		for t.pairs[at].next != i {
			at = t.pairs[at].next
		}
		t.pairs[at].next = p.next
	case p.next == 0:
		delete(t.heads, p.addr)
	default:
		t.heads[p.addr] = p.next
	}
	*p = pair{next: t.free}
	t.free = i
	t.used--
}

// grant enters the addresses of one answer that may be told, and returns which have
// their place. Pairs of rules that deny are entered last, so that those of rules that
// allow go before them where room is made: an address of which only the latter are left would
// be open by ports that are denied.
func (t *table) grant(l *ruleList, name domain.Name, aliases []domain.Name, addrs []netip.Addr, may uint64, until time.Time) (granted uint64) {
	t.init()
	var ids, denied []uint32
	for i := range l.rules {
		r := &l.rules[i]
		switch {
		case !r.byName || !r.fitsName(name, aliases):
		case r.allow:
			ids = append(ids, r.id)
		default:
			denied = append(denied, r.id)
		}
	}
	if len(ids) == 0 {
		ids = append(ids, noRule)
	}
	ids = append(ids, denied...)
	room := t.most / len(ids) // of addresses that do not push each other out
	end := until.Sub(t.begin) - t.now()
	end = t.now() + min(max(end, leastTime), mostTime) + overTime
	name = domain.Name(strings.Clone(string(name)))
	for i, a := range addrs {
		if may>>i&1 == 0 || room == 0 {
			continue
		}
		for _, id := range ids {
			t.enter(id, a, name, end)
		}
		granted |= 1 << i
		room--
	}
	return granted
}

// change makes the table that of other rules: pairs of those that are gone go, and new
// rules get what stands for a name of theirs.
func (t *table) change(stay map[uint32]bool, fresh []*rule) {
	if t.heads == nil {
		return
	}
	var stood []pair
	now := t.now()
	for i := t.pairs[0].newer; i != 0; {
		p := t.pairs[i]
		if len(fresh) > 0 && p.until > now {
			stood = append(stood, p)
		}
		if !stay[p.rule] {
			t.drop(i)
		}
		i = p.newer
	}
	for i := range stood {
		for _, r := range fresh {
			if r.pattern.Matches(stood[i].name) {
				t.enter(r.id, stood[i].addr, stood[i].name, stood[i].until)
			}
		}
	}
}

// known is what is known of one flow's destination. The table's lock is held as long as
// it is used.
type known struct {
	t    *table
	head int32 // pairs of the address
	now  time.Duration
	name domain.Name // the flow's, or one that has led to the address
	open bool        // the flow's name counts, and no pair
}

func (e *RuleSet) known(f *Flow) known {
	n := known{t: &e.table, open: f.Open}
	switch {
	case f.Open:
		n.name = f.Name
		return n
	case f.Mapped:
		return n
	}
	if n.head = e.table.heads[f.To.Addr()]; n.head == 0 {
		return n
	}
	if !f.Past {
		n.now = e.table.now()
	}
	for i := n.head; i != 0 && n.name == ""; i = e.table.pairs[i].next {
		if p := &e.table.pairs[i]; p.until > n.now {
			n.name = p.name
		}
	}
	return n
}

// stands tells whether the address stands for a rule, and for which name.
func (n *known) stands(r *rule) (match, domain.Name) {
	if n.open {
		if r.pattern.Matches(n.name) {
			return fits, n.name
		}
		return otherName, ""
	}
	for i := n.head; i != 0; i = n.t.pairs[i].next {
		if p := &n.t.pairs[i]; p.rule == r.id {
			if p.until > n.now {
				return fits, p.name
			}
			return pastTime, p.name
		}
	}
	return otherName, ""
}

// by is the name by which the guest has come to where a rule fits, if it is known.
func (n *known) by(r *rule) domain.Name {
	if !r.byName {
		return n.name
	}
	_, name := n.stands(r)
	return name
}

// why puts a match of a rule by name into words.
func (n *known) why(r *rule, m match) string {
	_, name := n.stands(r)
	switch m {
	case otherName:
		return "is for other names, as far as the guest has asked for any"
	case pastTime:
		return fmt.Sprintf("is for %s, whose time is over: the guest has to ask for it again", name)
	case guarded:
		return fmt.Sprintf("is for %s, but no name leads there: it is on the link, of a host itself, or denied by default", name)
	}
	left := ""
	for i := n.head; i != 0; i = n.t.pairs[i].next {
		if p := &n.t.pairs[i]; p.rule == r.id {
			left = " for another " + (p.until - n.now).Round(time.Second).String()
		}
	}
	if r.allow {
		return fmt.Sprintf("fits by %s%s, and allows", name, left)
	}
	return fmt.Sprintf("fits by %s%s, and denies", name, left)
}

// Table tells how many pairs of a rule by name and an address stand now, and how many
// there can be.
func (e *RuleSet) Table() (entries, bound int) {
	for id, n := range e.standing() {
		if id != noRule {
			entries += n
		}
	}
	return entries, maxPairs
}

// standing counts the addresses that stand, by rule.
func (e *RuleSet) standing() map[uint32]int {
	t := &e.table
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := map[uint32]int{}
	if t.heads == nil {
		return n
	}
	now := t.now()
	for i := t.pairs[0].newer; i != 0; i = t.pairs[i].newer {
		if p := &t.pairs[i]; p.until > now {
			n[p.rule]++
		}
	}
	return n
}

// listNote is what there is to say of a rule in a list.
func (r *rule) listNote(stands map[uint32]int) string {
	if !r.byName || r.note != "" {
		return r.note
	}
	n := stands[r.id]
	return fmt.Sprintf("%d address%s now", n, map[bool]string{false: "es"}[n == 1])
}
