// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// table collects measurements: rows are named "what|unit".
type table struct {
	order  []string
	values map[string]map[string][]float64 // row, contestant
}

func newTable() *table { return &table{values: map[string]map[string][]float64{}} }

func (t *table) add(name, who string, v float64) {
	if t.values[name] == nil {
		t.order = append(t.order, name)
		t.values[name] = map[string][]float64{}
	}
	t.values[name][who] = append(t.values[name][who], v)
}

func median(v []float64) (float64, bool) {
	if len(v) == 0 {
		return 0, false
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2, true
	}
	return s[len(s)/2], true
}

// lowerIsBetter tells by a row's unit.
func lowerIsBetter(unit string) bool { return unit != "Gbit/s" && unit != "1/s" }

// sections is the order in which units are shown.
var sections = []string{"Gbit/s", "CPU s/GiB", "1/s", "p50 µs", "p99 µs", "ms", "MiB PSS", "per second"}

var columns = []string{"veth", "pasta", "slirp4netns", "aldente"}

// print shows a table for each unit: medians, aldente's ratio to the better
// of the peers, and to the kernel.
func (t *table) print() {
	for _, unit := range sections {
		var names []string
		for _, n := range t.order {
			if _, u, _ := strings.Cut(n, "|"); u == unit {
				names = append(names, n)
			}
		}
		if len(names) == 0 {
			continue
		}
		note := "higher is better"
		if lowerIsBetter(unit) {
			note = "lower is better"
		}
		fmt.Printf("| %-44s | %10s | %10s | %11s | %10s | %6s | %6s |\n", unit+" ("+note+")", columns[0], columns[1], columns[2], columns[3], "× peer", "× veth")
		fmt.Printf("|%s|%s:|%s:|%s:|%s:|%s:|%s:|\n", strings.Repeat("-", 46), strings.Repeat("-", 11), strings.Repeat("-", 11),
			strings.Repeat("-", 12), strings.Repeat("-", 11), strings.Repeat("-", 7), strings.Repeat("-", 7))
		for _, n := range names {
			t.line(n, unit)
		}
		fmt.Println()
	}
}

func (t *table) line(name, unit string) {
	what, _, _ := strings.Cut(name, "|")
	fmt.Printf("| %-44s |", what)
	for i, c := range columns {
		width := []int{10, 10, 11, 10}[i]
		if m, ok := median(t.values[name][c]); ok {
			fmt.Printf(" %*s |", width, number(m))
		} else {
			fmt.Printf(" %*s |", width, "–")
		}
	}
	fmt.Printf(" %6s | %6s |\n", ratio(t.values[name], unit, "pasta", "slirp4netns"), ratio(t.values[name], unit, "veth"))
}

// number prints three significant digits or all before the point.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// ratio divides aldente's median by the best of the others'.
func ratio(row map[string][]float64, unit string, others ...string) string {
	ours, ok := median(row["aldente"])
	best, found := 0.0, false
	for _, o := range others {
		if m, ok := median(row[o]); ok && (!found || (m < best) == lowerIsBetter(unit)) {
			best, found = m, true
		}
	}
	if !ok || !found || best == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", ours/best)
}

// writeCSV writes every measurement.
func (t *table) writeCSV(file string) error {
	if file == "" {
		return nil
	}
	var b strings.Builder
	b.WriteString("row,unit,who,value\n")
	for _, n := range t.order {
		what, unit, _ := strings.Cut(n, "|")
		for _, c := range columns {
			for _, v := range t.values[n][c] {
				fmt.Fprintf(&b, "%q,%q,%s,%g\n", what, unit, c, v)
			}
		}
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}
