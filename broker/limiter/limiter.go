// SPDX-License-Identifier: Apache-2.0

// Package limiter bounds how often something happens, by token buckets.
package limiter

import "time"

// Rate is how often something may happen: PerSecond on and on, Burst at once.
// Where PerSecond is negative there is no limit.
type Rate struct{ PerSecond, Burst int }

// Bucket holds the tokens of a Rate. It starts full.
type Bucket struct {
	Rate Rate // set before the first use

	tokens float64
	last   time.Time // when they were counted; zero: never
	missed int
}

// Ready tells whether there is a token. It takes none.
func (b *Bucket) Ready(now time.Time) bool {
	if b.Rate.PerSecond < 0 {
		return true
	}
	if b.last.IsZero() {
		b.tokens = float64(b.Rate.Burst)
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(b.tokens+d.Seconds()*float64(b.Rate.PerSecond), float64(b.Rate.Burst))
	}
	b.last = now
	return b.tokens >= 1
}

// Spend takes a token, after Ready.
func (b *Bucket) Spend() { b.tokens-- }

// Refund returns a token that was taken for nothing.
func (b *Bucket) Refund() { b.tokens = min(b.tokens+1, float64(b.Rate.Burst)) }

// Take takes a token if there is one, and reports whether there was.
func (b *Bucket) Take(now time.Time) bool {
	if !b.Ready(now) {
		b.missed++
		return false
	}
	b.Spend()
	return true
}

// Missed is how often Take has found no token since Missed was last called.
func (b *Bucket) Missed() int {
	n := b.missed
	b.missed = 0
	return n
}
