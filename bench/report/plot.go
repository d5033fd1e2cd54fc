// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// Plot is a chart of groups of bars, one bar for each contestant.
type Plot struct {
	File   string   // name of the SVG file
	Title  string   // with the unit of the bars
	Unit   string   // of the rows
	Groups []string // names below the groups
	Rows   []string // what is measured, one for each group
}

// Draw writes plots as SVG into a folder, which is made; without a name it does
// nothing.
func (t *Table) Draw(dir string, plots []Plot) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range plots {
		if err := os.WriteFile(filepath.Join(dir, p.File), []byte(t.SVG(p)), 0o644); err != nil {
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
	chartRight              = 8
)

var colours = []string{"#9aa0a6", "#d9822b", "#5c7080", "#137cbd"}

// SVG returns a chart of medians. Rows that were not measured have no bars.
func (t *Table) SVG(p Plot) string {
	rows := make([]key, len(p.Rows))
	for i, what := range p.Rows {
		rows[i] = key{what, p.Unit}
	}
	who := t.contestants(rows)
	highest := 0.0
	for _, k := range rows {
		for _, w := range who {
			if m, ok := Median(t.values[k][w]); ok {
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
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="16" font-size="13">%s</text>`+"\n", chartWidth, chartHeight, chartLeft, p.Title)
	for i, w := range who {
		x := chartLeft + i*110
		fmt.Fprintf(&b, `<rect x="%d" y="25" width="10" height="10" fill="%s"/><text x="%d" y="34">%s</text>`+"\n", x, colour(i), x+14, w)
	}
	for v := 0.0; v <= top; v += step {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			chartLeft, y(v), chartWidth-chartRight, chartLeft-6, y(v)+4, v)
	}
	group := float64(chartWidth-chartLeft-chartRight) / float64(len(rows))
	bar := group / float64(len(who)+1)
	for g, k := range rows {
		left := chartLeft + group*float64(g)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", left+group/2, chartHeight-12, p.Groups[g])
		for i, w := range who {
			m, ok := Median(t.values[k][w])
			if !ok {
				continue
			}
			x := left + bar*(float64(i)+0.5)
			fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/><text x="%.1f" y="%.1f" text-anchor="middle" font-size="9">%s</text>`+"\n",
				x, y(m), bar*0.92, y(0)-y(m), colour(i), x+bar/2, y(m)-3, number(m))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func colour(i int) string { return colours[i%len(colours)] }

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
