// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"aldente/broker/egress"
	"aldente/broker/limiter"
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
	lines limiter.Bucket // of refusalLines
}

// refusal is what counts as the same.
type refusal struct {
	proto uint8
	to    netip.AddrPort
}

// note takes one refusal, by a rule.
func (r *refusals) note(log *slog.Logger, proto uint8, to netip.AddrPort, v *egress.Verdict) {
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
		log.Warn(text, what.fields(v)...)
		if len(r.named) == maxNamed {
			log.Warn("further destinations that are refused are not named any more")
		}
		return
	}
	if r.lines.Take(time.Now()) {
		log.Debug(text, append(what.fields(v), "refusals", r.total)...)
	}
}

// fields are what the log says of it.
func (r refusal) fields(v *egress.Verdict) []any {
	f := []any{"protocol", protoName(r.proto), "to", r.to.String()}
	if v.Name != "" {
		f = append(f, "name", string(v.Name))
	}
	return append(f, "rule", v.Rule)
}

// Refused returns how many sockets the egress rules have refused, and how many
// destinations of these were named.
func (f *Factory) Refused() (total, named int) {
	f.refusals.mu.Lock()
	defer f.refusals.mu.Unlock()
	return f.refusals.total, len(f.refusals.named)
}

// refusalLines is how many lines refusals may be in the log, beyond those that name a
// destination for the first time.
var refusalLines = limiter.Rate{PerSecond: 10, Burst: 50}
