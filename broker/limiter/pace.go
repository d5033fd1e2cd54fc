// SPDX-License-Identifier: Apache-2.0

package limiter

import "time"

// Pace has whoever is too fast wait. An honest burst that exceeds it waits a moment in
// its sender's queue, no more: too fast is no fault.
type Pace struct {
	Rate  Rate                // set before the first use
	Sleep func(time.Duration) // nil: time.Sleep

	tokens float64
	last   time.Time
}

// Take waits until n may be had.
func (p *Pace) Take(n int, now time.Time) {
	if p.last.IsZero() {
		p.tokens = float64(p.Rate.Burst)
	} else {
		p.tokens = min(p.tokens+now.Sub(p.last).Seconds()*float64(p.Rate.PerSecond), float64(p.Rate.Burst))
	}
	p.last = now
	p.tokens -= float64(n)
	if p.tokens >= 0 {
		return
	}
	// Not for each: a sleep costs more than one.
	wait := max(time.Duration(-p.tokens/float64(p.Rate.PerSecond)*float64(time.Second)), time.Millisecond)
	if p.Sleep != nil {
		p.Sleep(wait)
		return
	}
	time.Sleep(wait)
}
