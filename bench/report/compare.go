// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"slices"
	"strings"
)

// What a comparison of two runs comes to, beside level.
const (
	better = "better"
	worse  = "worse"
)

// Compare shows our figures of two runs beside each other, one table for each unit: rows
// that both have. Machines differ from day to day, so what is judged is our ratio to the
// best peer, if both runs have an interval of it; else our own figure, if both have one
// of that. A row is better or worse only where the two intervals have nothing in common.
func Compare(saved, now *Table) string {
	var b strings.Builder
	for _, unit := range now.unitsInOrder() {
		lines := [][]string{{unit + " of " + Ours, "saved", "now", "now / saved", "× peer saved", "× peer now", ""}}
		for _, k := range now.rows {
			if k.unit != unit {
				continue
			}
			before, ok := Median(saved.values[k][Ours])
			after, also := Median(now.values[k][Ours])
			if !ok || !also {
				continue
			}
			ratio := nothing
			if before > 0 {
				ratio = fmt.Sprintf("%.2f", after/before)
			}
			lines = append(lines, []string{k.what, number(before), number(after), ratio,
				saved.ratio(k, saved.peers(k)...), now.ratio(k, now.peers(k)...), changed(saved, now, k)})
		}
		if len(lines) > 1 {
			b.WriteString(align(lines) + "\n")
		}
	}
	return b.String()
}

// peers are who has a value in this row beside us and the kernel.
func (t *Table) peers(k key) []string {
	return slices.DeleteFunc(t.contestants([]key{k}), func(w string) bool { return w == Kernel || w == Ours })
}

// changed judges a row of two runs.
func changed(saved, now *Table, k key) string {
	before, _ := saved.against(k, saved.peers(k)...)
	after, _ := now.against(k, now.peers(k)...)
	was, is := before.span, after.span
	if !before.sure || !after.sure {
		var ok, also bool
		was, ok = interval(saved.values[k][Ours])
		is, also = interval(now.values[k][Ours])
		if !ok || !also {
			return nothing
		}
	}
	switch low := lowerIsBetter(k.unit); {
	case is.low > was.high && !low, is.high < was.low && low:
		return better
	case is.high < was.low, is.low > was.high:
		return worse
	}
	return level
}
