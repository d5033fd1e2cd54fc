// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// Column is one column of the table of flows.
type Column struct {
	Title string            // as it is shown
	Order string            // name of the order by it, empty: none
	Right bool              // numbers stand right
	Rank  int               // where there is no room, the highest goes first
	Rates bool              // makes sense only with two samples
	Spare bool              // is left out where no row has anything in it
	Text  func(*Row) string // what is shown
}

// Columns are those of the table of flows, from the left.
var Columns = []Column{
	{Title: "PROTO", Order: "protocol", Rank: 2, Text: func(r *Row) string { return r.Protocol }},
	{Title: "DIR", Rank: 5, Text: func(r *Row) string { return direction(r.Direction) }},
	{Title: "STATE", Order: "state", Rank: 4, Text: func(r *Row) string { return r.State }},
	{Title: "GUEST", Order: "guest", Rank: 6, Text: func(r *Row) string { return r.Guest }},
	{Title: "REMOTE", Order: "remote", Rank: 0, Text: remote},
	{Title: "UP/s", Order: "rate", Right: true, Rank: 1, Rates: true, Text: func(r *Row) string { return rate(r, r.SentRate) }},
	{Title: "DOWN/s", Order: "rate", Right: true, Rank: 1, Rates: true, Text: func(r *Row) string { return rate(r, r.ReceivedRate) }},
	{Title: "SENT", Order: "sent", Right: true, Rank: 8, Text: func(r *Row) string { return Bytes(float64(r.Sent)) }},
	{Title: "RECEIVED", Order: "received", Right: true, Rank: 7, Text: func(r *Row) string { return Bytes(float64(r.Received)) }},
	{Title: "RTT", Order: "rtt", Right: true, Rank: 3, Text: func(r *Row) string { return RTT(r.RTT) }},
	{Title: "RETR", Order: "retransmits", Right: true, Rank: 9, Text: func(r *Row) string { return Count(float64(r.Retransmits)) }},
	{Title: "QUEUED", Order: "queued", Right: true, Rank: 11, Text: func(r *Row) string { return Bytes(float64(r.Queued)) }},
	{Title: "AGE", Order: "age", Right: true, Rank: 12, Text: func(r *Row) string { return Span(r.Age) }},
	{Title: "IDLE", Order: "idle", Right: true, Rank: 10, Text: func(r *Row) string { return Span(r.Idle) }},
	{Title: "RULE", Order: "rule", Rank: 13, Spare: true, Text: func(r *Row) string { return orDash(r.Rule) }},
}

// remote is the other side, with its name if there is one.
func remote(r *Row) string {
	if r.Name == "" {
		return r.Remote
	}
	return r.Remote + " (" + r.Name + ")"
}

// direction is short enough for a column: past the link is "<>".
func direction(d string) string {
	if way, ok := strings.CutPrefix(d, "bypass-"); ok {
		return "<>" + way
	}
	return d
}

func rate(r *Row, v float64) string {
	if !r.Known {
		return "-"
	}
	return Short(v)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// gap is what stands between two columns.
const gap = 2

// Table is a table that was laid out: Head and Lines have the same columns.
type Table struct {
	Columns []Column // those that found room
	Head    string   // titles
	Lines   []string // one for each row
}

// Layout lays rows out in a table. If width is not zero, columns go where there is
// no room, and in the end lines are cut.
func Layout(rows []Row, columns []Column, width int) Table {
	cells := make([][]string, len(columns)) // by column
	widths := make([]int, len(columns))
	for i := range columns {
		cells[i] = make([]string, len(rows))
		widths[i] = ansi.StringWidth(columns[i].Title)
		for j := range rows {
			cells[i][j] = columns[i].Text(&rows[j])
			widths[i] = max(widths[i], ansi.StringWidth(cells[i][j]))
		}
	}
	columns, cells, widths = used(columns, cells, widths)
	shown := fit(columns, widths, width)
	t := Table{Lines: make([]string, len(rows))}
	for i, c := range columns {
		if shown[i] {
			t.Columns = append(t.Columns, c)
		}
	}
	line := func(cell func(i int) string) string {
		var b strings.Builder
		for i := range columns {
			if shown[i] {
				if b.Len() > 0 {
					b.WriteString(strings.Repeat(" ", gap))
				}
				b.WriteString(pad(cell(i), widths[i], columns[i].Right))
			}
		}
		return cut(strings.TrimRight(b.String(), " "), width)
	}
	t.Head = line(func(i int) string { return columns[i].Title })
	for j := range rows {
		t.Lines[j] = line(func(i int) string { return cells[i][j] })
	}
	return t
}

// used leaves out the columns that may go where they are empty.
func used(columns []Column, cells [][]string, widths []int) (c []Column, x [][]string, w []int) {
	for i := range columns {
		if !columns[i].Spare || slices.ContainsFunc(cells[i], func(s string) bool { return s != "-" }) {
			c, x, w = append(c, columns[i]), append(x, cells[i]), append(w, widths[i])
		}
	}
	return c, x, w
}

// fit says which columns find room.
func fit(columns []Column, widths []int, width int) []bool {
	shown := make([]bool, len(columns))
	for i := range shown {
		shown[i] = true
	}
	if width <= 0 {
		return shown
	}
	for {
		total, last := -gap, -1
		for i := range columns {
			if shown[i] {
				total += widths[i] + gap
				if last < 0 || columns[i].Rank > columns[last].Rank {
					last = i
				}
			}
		}
		if total <= width || last < 0 || columns[last].Rank == 0 {
			return shown
		}
		shown[last] = false
	}
}

func pad(s string, width int, right bool) string {
	fill := strings.Repeat(" ", max(width-ansi.StringWidth(s), 0))
	if right {
		return fill + s
	}
	return s + fill
}

// cut shortens a line to a width, zero: not.
func cut(s string, width int) string {
	if width <= 0 || ansi.StringWidth(s) <= width {
		return s
	}
	return ansi.Truncate(s, width, "…")
}

// Spark is a small picture of values over time, the last on the right: eight heights
// of a block, of which the highest is top, or the largest value if top is zero.
func Spark(values []float64, width int, top float64) string {
	if width <= 0 {
		return ""
	}
	if len(values) > width {
		values = values[len(values)-width:]
	}
	if top <= 0 {
		for _, v := range values {
			top = max(top, v)
		}
	}
	const blocks = "▁▂▃▄▅▆▇█"
	steps := utf8.RuneCountInString(blocks)
	var b strings.Builder
	b.WriteString(strings.Repeat(" ", width-len(values)))
	for _, v := range values {
		if !(v > 0) || top <= 0 {
			b.WriteString(" ")
			continue
		}
		n := min(int(v/top*float64(steps)), steps-1)
		b.WriteRune([]rune(blocks)[max(n, 0)])
	}
	return b.String()
}
