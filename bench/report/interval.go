// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"slices"
)

// Confidence is with which probability, at the least, an interval holds the median.
const Confidence = 0.95

// span is from where to where a median lies.
type span struct{ low, high float64 }

// interval is the one of the median of what v are samples of, from order statistics: half of
// all samples are below the median, so how many of v are is binomial, whatever the
// distribution. It reports false for fewer than six values, which cannot be that sure.
func interval(v []float64) (span, bool) {
	n := len(v)
	// With probability below, fewer than k of v lie on one side of the median.
	k, below, exactly := 0, 0.0, 1.0
	for range n {
		exactly /= 2
	}
	for ; below+exactly <= (1-Confidence)/2; k++ {
		below += exactly
		exactly *= float64(n-k) / float64(k+1)
	}
	if k == 0 {
		return span{}, false
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return span{s[k-1], s[n-k]}, true
}

// pairs are the ratios of what was measured one after the other. Where a measurement
// failed nobody knows which belong together: there are none. Beside somebody who has moved
// nothing the ratio is infinite.
func pairs(ours, theirs []float64) (ratios []float64) {
	if len(ours) != len(theirs) {
		return nil
	}
	for i := range ours {
		if theirs[i] == 0 && ours[i] == 0 {
			return nil
		}
		ratios = append(ratios, ours[i]/theirs[i])
	}
	return ratios
}

// versus is how we stand beside another: the median ratio, and where it lies if that is
// known.
type versus struct {
	ratio float64
	span
	sure bool
}

// against compares our values with the best of the others'; it reports false if they cannot be.
func (t *Table) against(k key, others ...string) (v versus, ok bool) {
	row := t.values[k]
	ours, measured := Median(row[Ours])
	best, who := 0.0, ""
	for _, o := range others {
		if apart(row[o]) {
			return v, false
		}
		if m, ok := Median(row[o]); ok && (who == "" || (m < best) == lowerIsBetter(k.unit)) {
			best, who = m, o
		}
	}
	if !measured || who == "" || best == 0 {
		return v, false
	}
	v.ratio = ours / best
	p := pairs(row[Ours], row[who])
	if v.span, v.sure = interval(p); v.sure {
		v.ratio, _ = Median(p)
	}
	return v, true
}

// cell shows an interval.
func (v versus) cell() string {
	if !v.sure {
		return nothing
	}
	if math.IsInf(v.high, 1) {
		return fmt.Sprintf("%.2f and more", v.low)
	}
	return fmt.Sprintf("%.2f to %.2f", v.low, v.high)
}

// What a comparison comes to.
const (
	ahead  = "ahead"
	level  = "level"
	behind = "behind"
)

// verdict is ahead or behind only where the interval leaves no doubt.
func (v versus) verdict(unit string) string {
	switch low := lowerIsBetter(unit); {
	case !v.sure:
		return nothing
	case v.low > 1 && !low, v.high < 1 && low:
		return ahead
	case v.high < 1, v.low > 1:
		return behind
	}
	return level
}
