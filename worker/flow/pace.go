// SPDX-License-Identifier: Apache-2.0

package flow

// Pace bounds how often something happens in a second. Nil: not at all.
type Pace struct {
	perSecond, tokens float64
	last              int64 // nanoseconds, when tokens were counted; zero: never
	due               int64 // when there is a token for who has found none; zero: nobody has
}

// NewPace returns the pace of so many a second, as many of them at once; nil for zero.
func NewPace(perSecond int) *Pace {
	if perSecond == 0 {
		return nil
	}
	return &Pace{perSecond: float64(perSecond), tokens: float64(perSecond)}
}

// Ready tells whether it may happen now.
func (p *Pace) Ready(now int64) bool {
	if p == nil {
		return true
	}
	if p.last != 0 {
		p.tokens = min(p.tokens+float64(now-p.last)/1e9*p.perSecond, p.perSecond)
	}
	p.last = now
	if p.tokens < 1 {
		p.due = now + int64((1-p.tokens)/p.perSecond*1e9) + 1
		return false
	}
	return true
}

// Spend notes that it has happened, after Ready.
func (p *Pace) Spend() {
	if p != nil {
		p.tokens--
	}
}

// Due returns when it may happen for whoever was told that it may not, and forgets
// that; zero: nobody was.
func (p *Pace) Due() int64 {
	if p == nil {
		return 0
	}
	due := p.due
	p.due = 0
	return due
}
