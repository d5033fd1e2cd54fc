// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// plot is a chart of groups of bars, one bar for each contestant.
type plot struct {
	file, title string
	groups      []string // names below the groups
	rows        []string // of the table
}

// plots are throughput against MTU, and against the number of flows.
func plots() []plot {
	var all []plot
	for _, down := range []bool{false, true} {
		d := directions[down]
		mtu := plot{file: "mtu-" + d + ".svg", title: "TCP " + d + ", 1 flow, Gbit/s, by MTU"}
		for _, m := range []int{1500, 9000, 65520} {
			mtu.groups = append(mtu.groups, fmt.Sprint(m))
			mtu.rows = append(mtu.rows, bulkRow(m, 0, 1, down).name+"|Gbit/s")
		}
		flows := plot{file: "flows-" + d + ".svg", title: "TCP " + d + ", MTU 65520, Gbit/s, by flows"}
		for _, n := range []int{1, 4, 64} {
			flows.groups = append(flows.groups, fmt.Sprint(n))
			flows.rows = append(flows.rows, bulkRow(65520, 0, n, down).name+"|Gbit/s")
		}
		all = append(all, mtu, flows)
	}
	return all
}

// draw writes the plots whose rows were measured.
func (t *table) draw(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range plots() {
		if err := os.WriteFile(filepath.Join(dir, p.file), []byte(t.svg(p)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Measures of a chart, in SVG's user units.
const (
	chartWidth, chartHeight = 560, 280
	chartLeft, chartTop     = 44, 46
	chartBottom             = 30
)

var colours = []string{"#9aa0a6", "#d9822b", "#5c7080", "#137cbd"}

func (t *table) svg(p plot) string {
	highest := 0.0
	for _, row := range p.rows {
		for _, c := range columns {
			if m, ok := median(t.values[row][c]); ok {
				highest = max(highest, m)
			}
		}
	}
	step := niceStep(highest / 5)
	top := step * math.Ceil(highest/step)
	height := float64(chartHeight - chartTop - chartBottom)
	y := func(v float64) float64 { return chartTop + height*(1-v/top) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", chartWidth, chartHeight)
	b.WriteString("<!-- SPDX-License-Identifier: Apache-2.0 -->\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="16" font-size="13">%s</text>`+"\n", chartWidth, chartHeight, chartLeft, p.title)
	for i, c := range columns {
		x := chartLeft + i*110
		fmt.Fprintf(&b, `<rect x="%d" y="25" width="10" height="10" fill="%s"/><text x="%d" y="34">%s</text>`+"\n", x, colours[i], x+14, c)
	}
	for v := 0.0; v <= top; v += step {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			chartLeft, y(v), chartWidth-8, chartLeft-6, y(v)+4, v)
	}
	group := float64(chartWidth-chartLeft-8) / float64(len(p.rows))
	bar := group / float64(len(columns)+1)
	for g, row := range p.rows {
		left := chartLeft + group*float64(g)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", left+group/2, chartHeight-12, p.groups[g])
		for i, c := range columns {
			m, ok := median(t.values[row][c])
			if !ok {
				continue
			}
			x := left + bar*(float64(i)+0.5)
			fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/><text x="%.1f" y="%.1f" text-anchor="middle" font-size="9">%s</text>`+"\n",
				x, y(m), bar*0.92, y(0)-y(m), colours[i], x+bar/2, y(m)-3, number(m))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// niceStep is the next larger of 1, 2 or 5 times a power of ten.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*p >= v {
			return m * p
		}
	}
	return 10 * p
}
