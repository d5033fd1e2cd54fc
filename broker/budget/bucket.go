// SPDX-License-Identifier: Apache-2.0

package budget

import "time"

// Rate is how often something may happen: PerSecond on and on, Burst at once.
// Without a limit both are Unlimited.
type Rate struct{ PerSecond, Burst int }

// bucket holds the tokens of a rate. It starts full.
type bucket struct {
	rate   Rate
	tokens float64
	last   time.Time
}

// ready tells whether there is a token.
func (b *bucket) ready(now time.Time) bool {
	if b.rate.PerSecond == Unlimited {
		return true
	}
	if b.last.IsZero() {
		b.tokens = float64(b.rate.Burst)
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(b.tokens+d.Seconds()*float64(b.rate.PerSecond), float64(b.rate.Burst))
	}
	b.last = now
	return b.tokens >= 1
}

// take takes a token, after ready.
func (b *bucket) take() { b.tokens-- }

// giveBack returns a token that was taken for nothing.
func (b *bucket) giveBack() { b.tokens = min(b.tokens+1, float64(b.rate.Burst)) }
