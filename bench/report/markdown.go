// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// units is the order in which they are shown; others follow.
var units = []string{"Gbit/s", "CPU s/GiB", "1/s", "p50 µs", "p99 µs", "CPU µs", "system calls", "ms", "MiB PSS", "per second"}

// nothing stands for a value that was not measured, and for a ratio that cannot be.
const nothing = "–"

// Markdown returns the notes and a table for each unit: medians of all
// contestants, the ratio of ours to the better of the peers, with an interval where there
// are enough pairs, and to the kernel.
// Rows are those that match only; nil: all.
func (t *Table) Markdown(only *regexp.Regexp) string {
	var b strings.Builder
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	for _, unit := range t.unitsInOrder() {
		var rows []key
		for _, k := range t.rows {
			if k.unit == unit && (only == nil || only.MatchString(k.what)) {
				rows = append(rows, k)
			}
		}
		if len(rows) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(t.section(unit, rows))
	}
	return b.String()
}

func (t *Table) unitsInOrder() []string {
	all := slices.Clone(units)
	for _, k := range t.rows {
		if !slices.Contains(all, k.unit) {
			all = append(all, k.unit)
		}
	}
	return all
}

// section is the table of one unit.
func (t *Table) section(unit string, rows []key) string {
	who := t.contestants(rows)
	peers := slices.DeleteFunc(slices.Clone(who), func(w string) bool { return w == Kernel || w == Ours })
	compared := slices.Contains(who, Ours)
	note := "higher is better"
	if lowerIsBetter(unit) {
		note = "lower is better"
	}
	lines := [][]string{append([]string{unit + " (" + note + ")"}, who...)}
	beside := compared && len(peers) > 0
	sure := beside && slices.ContainsFunc(rows, func(k key) bool { v, _ := t.against(k, peers...); return v.sure })
	if beside {
		lines[0] = append(lines[0], "× peer")
	}
	if sure {
		lines[0] = append(lines[0], "95 %", "")
	}
	kernel := compared && slices.Contains(who, Kernel)
	if kernel {
		lines[0] = append(lines[0], "× "+Kernel)
	}
	for _, k := range rows {
		line := []string{k.what}
		for _, w := range who {
			line = append(line, cell(t.values[k][w]))
		}
		if beside {
			line = append(line, t.ratio(k, peers...))
		}
		if sure {
			v, _ := t.against(k, peers...)
			line = append(line, v.cell(), v.verdict(unit))
		}
		if kernel {
			line = append(line, t.ratio(k, Kernel))
		}
		lines = append(lines, line)
	}
	return align(lines)
}

// align sets cells in columns, numbers to the right.
func align(lines [][]string) string {
	width := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, c := range line {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for n, line := range lines {
		b.WriteByte('|')
		for i, c := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i == 0 {
				c += pad
			} else {
				c = pad + c
			}
			b.WriteString(" " + c + " |")
		}
		b.WriteByte('\n')
		if n > 0 {
			continue
		}
		for i, w := range width {
			if i == 0 {
				b.WriteString("|" + strings.Repeat("-", w+2) + "|")
			} else {
				b.WriteString(strings.Repeat("-", w+1) + ":|")
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// cell is the median of some values. Two that are far from each other have none
// that would say anything: both are shown.
func cell(v []float64) string {
	if apart(v) {
		return number(min(v[0], v[1])) + " to " + number(max(v[0], v[1]))
	}
	if m, ok := Median(v); ok {
		return number(m)
	}
	return nothing
}

// apart tells whether there are two values of which one is more than twice the other.
func apart(v []float64) bool { return len(v) == 2 && max(v[0], v[1]) > 2*min(v[0], v[1]) }

// ratio is ours to the best of the others'.
func (t *Table) ratio(k key, others ...string) string {
	v, ok := t.against(k, others...)
	if !ok {
		return nothing
	}
	return fmt.Sprintf("%.2f", v.ratio)
}
