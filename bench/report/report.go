// SPDX-License-Identifier: Apache-2.0

// Package report holds the results of benchmarks: a table of measurements, the
// CSV file that keeps them, and the Markdown tables and SVG charts that are made
// of it.
package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Ours is the contestant that is compared with the others, Kernel the one that is
// no translator but what the kernel does by itself.
const (
	Ours   = "aldente"
	Kernel = "veth"
)

// Table collects measurements.
type Table struct {
	// Notes say what was measured on, with and how: a line each.
	Notes []string

	rows   []key
	values map[key]map[string][]float64 // by contestant
}

// key names a row: what is measured, and in which unit.
type key struct{ what, unit string }

// New makes an empty table.
func New() *Table { return &Table{values: map[key]map[string][]float64{}} }

// Add adds one measurement. A row is shown where it was added first.
func (t *Table) Add(what, unit, who string, v float64) {
	k := key{what, unit}
	if t.values[k] == nil {
		t.rows = append(t.rows, k)
		t.values[k] = map[string][]float64{}
	}
	t.values[k][who] = append(t.values[k][who], v)
}

// head is the first line of a CSV file.
var head = []string{"row", "unit", "who", "value"}

// Write writes all measurements as CSV, the notes as comments before them.
func (t *Table) Write(w io.Writer) error {
	for _, n := range t.Notes {
		if _, err := fmt.Fprintln(w, strings.TrimSpace("# "+n)); err != nil {
			return err
		}
	}
	c := csv.NewWriter(w)
	_ = c.Write(head)
	for _, k := range t.rows {
		for _, who := range t.contestants(t.rows) {
			for _, v := range t.values[k][who] {
				_ = c.Write([]string{k.what, k.unit, who, strconv.FormatFloat(v, 'g', 6, 64)})
			}
		}
	}
	c.Flush()
	return c.Error()
}

// WriteFile is Write to a file; without a name it does nothing.
func (t *Table) WriteFile(file string) error {
	if file == "" {
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := t.Write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// Read reads what Write has written.
func Read(r io.Reader) (*Table, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	t := New()
	for line := range strings.Lines(string(b)) {
		note, ok := strings.CutPrefix(line, "#")
		if !ok {
			break
		}
		t.Notes = append(t.Notes, strings.TrimSpace(note))
	}
	c := csv.NewReader(strings.NewReader(string(b)))
	c.Comment, c.FieldsPerRecord = '#', len(head)
	records, err := c.ReadAll()
	if err != nil {
		return nil, err
	}
	if len(records) == 0 || !slices.Equal(records[0], head) {
		return nil, fmt.Errorf("the first line is not %q", strings.Join(head, ","))
	}
	for _, rec := range records[1:] {
		v, err := strconv.ParseFloat(rec[3], 64)
		if err != nil {
			return nil, err
		}
		t.Add(rec[0], rec[1], rec[2], v)
	}
	return t, nil
}

// ReadFile is Read from a file.
func ReadFile(file string) (*Table, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}

// order is where contestants stand in a table; those that are not here come
// between these and Ours.
var order = []string{Kernel, "pasta", "passt", "slirp4netns", "gvproxy"}

// contestants are those that have a value in one of the rows, in order.
func (t *Table) contestants(rows []key) []string {
	var all []string
	for _, k := range rows {
		for who := range t.values[k] {
			if !slices.Contains(all, who) {
				all = append(all, who)
			}
		}
	}
	rank := func(who string) int {
		if i := slices.Index(order, who); i >= 0 {
			return i
		}
		if who == Ours {
			return len(order) + 1
		}
		return len(order)
	}
	slices.SortFunc(all, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return all
}

// Median is the median; it reports false if there is no value.
func Median(v []float64) (float64, bool) {
	if len(v) == 0 {
		return 0, false
	}
	s := slices.Clone(v)
	slices.Sort(s)
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2, true
}

// lowerIsBetter tells by a row's unit.
func lowerIsBetter(unit string) bool {
	return unit != "Gbit/s" && unit != "1/s" && unit != "× without"
}

// number has three significant digits, or all before the point.
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
