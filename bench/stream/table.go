// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

// table collects results: by row, by contestant, one of each round.
type table struct {
	contestants []contestant
	rows        []row
	results     map[string][]result
}

func newTable(c []contestant) *table {
	return &table{contestants: c, results: map[string][]result{}}
}

func key(r row, c contestant) string { return r.String() + "/" + c.name }

func (t *table) add(r row, c contestant, res result) {
	if !slices.Contains(t.rows, r) {
		t.rows = append(t.rows, r)
	}
	t.results[key(r, c)] = append(t.results[key(r, c)], res)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// cell is the median of what f selects.
func (t *table) cell(r row, c contestant, f func(result) float64) float64 {
	var v []float64
	for _, res := range t.results[key(r, c)] {
		v = append(v, f(res))
	}
	return median(v)
}

// print writes a table in Markdown.
func (t *table) print(o options) {
	fmt.Printf("\nGbit/s (processor seconds per GiB: of the translator, of all processes on the way; segments sent twice), medians of %d rounds of %v\n\n", o.rounds, o.span)
	head := []string{"row"}
	for _, c := range t.contestants {
		head = append(head, c.name)
	}
	head = append(head, "ratio to the better")
	fmt.Printf("| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	var ratios []float64
	for _, r := range t.rows {
		line := []string{r.String()}
		other, mine := 0.0, 0.0
		for _, c := range t.contestants {
			g := t.cell(r, c, func(x result) float64 { return x.gbit })
			line = append(line, fmt.Sprintf("%.2f (%.2f, %.2f; %.0f)", g,
				t.cell(r, c, func(x result) float64 { return x.cpu }),
				t.cell(r, c, func(x result) float64 { return x.all }),
				t.cell(r, c, func(x result) float64 { return float64(x.again) })))
			if c.name == ours {
				mine = g
			} else {
				other = max(other, g)
			}
		}
		if other > 0 {
			ratios = append(ratios, mine/other)
			line = append(line, fmt.Sprintf("%.2f", mine/other))
		} else {
			line = append(line, "-")
		}
		fmt.Printf("| %s |\n", strings.Join(line, " | "))
	}
	if len(ratios) > 0 {
		fmt.Printf("\nmedian of the ratios: %.2f\n", median(ratios))
	}
}
