// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// maxNamed bounds the destinations of which the log says that they are refused.
// A guest can try any number.
const maxNamed = 256

// refusals tells of what the egress rules refuse: each destination once, and with
// debugging every refusal, as far as the log can stand it.
type refusals struct {
	mu    sync.Mutex
	named map[refusal]struct{}
	total int
	lines bucket
}

// refusal is what counts as the same.
type refusal struct {
	proto uint8
	to    netip.AddrPort
}

// note takes one refusal, by a rule.
func (r *refusals) note(log *slog.Logger, proto uint8, to netip.AddrPort, rule string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	const text = "refused by the egress rules"
	what := refusal{proto, to}
	if _, known := r.named[what]; !known && len(r.named) < maxNamed {
		if r.named == nil {
			r.named = make(map[refusal]struct{})
		}
		r.named[what] = struct{}{}
		log.Warn(text, "proto", protoName(proto), "to", to.String(), "rule", rule)
		if len(r.named) == maxNamed {
			log.Warn("further destinations that are refused are not named any more")
		}
		return
	}
	if r.lines.take(time.Now()) {
		log.Debug(text, "proto", protoName(proto), "to", to.String(), "rule", rule, "refusals", r.total)
	}
}

// Refused returns how many sockets the egress rules have refused, and how many
// destinations of these were named.
func (f *Factory) Refused() (total, named int) {
	f.refusals.mu.Lock()
	defer f.refusals.mu.Unlock()
	return f.refusals.total, len(f.refusals.named)
}

// bucket lets burst events through at once, and perSecond in a second after that.
type bucket struct {
	tokens float64
	last   time.Time
}

const (
	burst     = 50
	perSecond = 10
)

func (b *bucket) take(now time.Time) bool {
	if b.last.IsZero() {
		b.tokens = burst
	} else {
		b.tokens = min(b.tokens+now.Sub(b.last).Seconds()*perSecond, burst)
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
