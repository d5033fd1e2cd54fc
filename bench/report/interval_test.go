// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestInterval: ranks are those of the tables of the sign test at 0.025 on each side.
func TestInterval(t *testing.T) {
	for _, c := range []struct{ n, rank int }{{0, 0}, {1, 0}, {5, 0}, {6, 1}, {8, 1}, {9, 2}, {11, 2}, {12, 3}, {20, 6}, {50, 18}, {100, 40}} {
		v := make([]float64, c.n)
		for i := range v {
			v[i] = float64(c.n - i) // n … 1: out of order
		}
		got, ok := interval(v)
		if ok != (c.rank > 0) {
			t.Errorf("%d values: %v, %v", c.n, got, ok)
		} else if want := (span{float64(c.rank), float64(c.n + 1 - c.rank)}); ok && got != want {
			t.Errorf("%d values: %v, wanted %v", c.n, got, want)
		}
	}
}

// TestIntervalHolds has intervals of a skew distribution, with a tail as figures of a shared
// machine have one, hold its median as often as they say.
func TestIntervalHolds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const trials, median = 4000, 2.0
	for _, n := range []int{6, 7, 12, 20} {
		held := 0
		for range trials {
			v := make([]float64, n)
			for i := range v {
				v[i] = 1 / (1 - r.Float64())
			}
			if s, ok := interval(v); ok && s.low <= median && median <= s.high {
				held++
			}
		}
		if held < trials*94/100 {
			t.Errorf("of %d values: %d of %d hold the median", n, held, trials)
		}
	}
}

func TestPairs(t *testing.T) {
	if got := pairs([]float64{2, 9}, []float64{4, 3}); !slices.Equal(got, []float64{0.5, 3}) {
		t.Errorf("%v", got)
	}
	if got := pairs([]float64{2}, []float64{0}); len(got) != 1 || !math.IsInf(got[0], 1) {
		t.Errorf("beside nothing: %v", got)
	}
	for _, bad := range [][2][]float64{{{1, 2}, {1}}, {{1, 0}, {1, 0}}} {
		if got := pairs(bad[0], bad[1]); got != nil {
			t.Errorf("%v: %v", bad, got)
		}
	}
}

func run(unit string, ours, pasta, slirp []float64) *Table {
	t := New()
	for who, values := range map[string][]float64{Ours: ours, "pasta": pasta, "slirp4netns": slirp} {
		for _, v := range values {
			t.Add("row", unit, who, v)
		}
	}
	return t
}

// TestVerdict: the machine gets slower by the round, and both with it, so only pairs show
// who is ahead. Who is best is told by medians, and by what is better in that unit.
func TestVerdict(t *testing.T) {
	slower := []float64{60, 50, 40, 30, 20, 10}
	times := func(f ...float64) (v []float64) {
		for i, s := range slower {
			v = append(v, s*f[i%len(f)])
		}
		return v
	}
	for _, c := range []struct {
		name, unit  string
		ours, slirp []float64
		want        string
	}{
		{"a little more each time", "Gbit/s", times(1.1), times(0.5), ahead},
		{"a little longer each time", "ms", times(1.1), times(3), behind},
		{"less, where less is better", "p99 µs", times(0.9, 0.8), times(3), ahead},
		{"once the other way", "Gbit/s", times(1.1, 1.2, 1.3, 1.1, 1.2, 0.99), times(0.5), level},
		{"behind the other peer", "Gbit/s", times(1.1), times(2), behind},
		{"one failed", "Gbit/s", times(1.1)[1:], times(0.5), nothing},
	} {
		table := run(c.unit, c.ours, slower, c.slirp)
		v, ok := table.against(key{"row", c.unit}, "pasta", "slirp4netns")
		if got := v.verdict(c.unit); !ok || got != c.want {
			t.Errorf("%s: %q of %+v, wanted %q", c.name, got, v, c.want)
		}
	}
	md := run("Gbit/s", times(1.1), slower, times(0.5)).Markdown(nil)
	if !strings.Contains(md, "|   1.10 | 1.10 to 1.10 | ahead |") {
		t.Errorf("%s", md)
	}
}

// TestCompare judges by the ratio to the peer where both runs know where that lies: a machine
// of half the speed is no loss. Without peers our own figures count, and few of them not.
func TestCompare(t *testing.T) {
	six := func(f float64) (v []float64) {
		for _, s := range []float64{60, 61, 62, 63, 64, 65} {
			v = append(v, s*f)
		}
		return v
	}
	for _, c := range []struct {
		name, unit string
		saved, now *Table
		want       string
	}{
		{"half as fast, both", "Gbit/s", run("Gbit/s", six(2), six(1), nil), run("Gbit/s", six(1), six(0.5), nil), level},
		{"half as fast, we", "Gbit/s", run("Gbit/s", six(2), six(1), nil), run("Gbit/s", six(1), six(1), nil), worse},
		{"half as long", "p50 µs", run("p50 µs", six(2), six(1), nil), run("p50 µs", six(1), six(1), nil), better},
		{"alone", "1/s", run("1/s", six(1), nil, nil), run("1/s", six(2), nil, nil), better},
		{"alone, by little", "1/s", run("1/s", six(1), nil, nil), run("1/s", six(1.02), nil, nil), level},
		{"a single value", "1/s", run("1/s", []float64{1}, nil, nil), run("1/s", six(2), nil, nil), nothing},
	} {
		if got := changed(c.saved, c.now, key{"row", c.unit}); got != c.want {
			t.Errorf("%s: %q, wanted %q", c.name, got, c.want)
		}
	}
	saved, now := run("Gbit/s", six(2), six(1), nil), run("Gbit/s", six(1), six(1), nil)
	now.Add("new", "ms", Ours, 1)
	const want = `| Gbit/s of aldente | saved |  now | now / saved | × peer saved | × peer now |       |
|-------------------|------:|-----:|------------:|-------------:|-----------:|------:|
| row               |   125 | 62.5 |        0.50 |         2.00 |       1.00 | worse |

`
	if got := Compare(saved, now); got != want {
		t.Errorf("%s", got)
	}
}
