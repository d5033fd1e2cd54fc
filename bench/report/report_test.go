// SPDX-License-Identifier: Apache-2.0

package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	document = "../../docs/performance.md"
	folder   = "../../docs/performance"
)

// TestDocument: the tables and plots of docs/performance.md are what the results
// beside it give.
func TestDocument(t *testing.T) {
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Fill(string(b), folder)
	if err != nil {
		t.Fatal(err)
	}
	if want != string(b) {
		t.Error("docs/performance.md is not what `make performance` makes of it")
	}
	data, err := ReadFile(filepath.Join(folder, PlotData))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range TapPlots() {
		svg, err := os.ReadFile(filepath.Join(folder, p.File))
		if err != nil {
			t.Error(err)
		} else if string(svg) != data.SVG(p) {
			t.Errorf("%s is not what `make performance` makes of it", p.File)
		}
		for _, what := range p.Rows {
			if len(data.values[key{what, p.Unit}]) == 0 {
				t.Errorf("%s: no %q in %s", p.File, what, PlotData)
			}
		}
	}
}

func sample() *Table {
	t := New()
	t.Notes = []string{"a machine", "with, a comma"}
	for _, v := range []float64{3, 1, 2} {
		t.Add("TCP \"up\", 1 flow", "Gbit/s", Ours, v)
	}
	t.Add("TCP \"up\", 1 flow", "Gbit/s", "pasta", 1)
	t.Add("TCP \"up\", 1 flow", "Gbit/s", "slirp4netns", 0.5)
	t.Add("TCP \"up\", 1 flow", "Gbit/s", Kernel, 8)
	t.Add("host's loopback", "p50 µs", Ours, 10)
	t.Add("host's loopback", "p50 µs", "pasta", 40)
	t.Add("host's loopback", "p50 µs", "slirp4netns", 20)
	t.Add("beside", "p50 µs", Ours, 100)
	t.Add("beside", "p50 µs", "pasta", 100)
	t.Add("beside", "p50 µs", "pasta", 300)
	return t
}

func TestMarkdown(t *testing.T) {
	const want = `- a machine
- with, a comma

| Gbit/s (higher is better) | veth | pasta | slirp4netns | aldente | × peer | × veth |
|---------------------------|-----:|------:|------------:|--------:|-------:|-------:|
| TCP "up", 1 flow          | 8.00 |  1.00 |       0.500 |    2.00 |   2.00 |   0.25 |

| p50 µs (lower is better) |      pasta | slirp4netns | aldente | × peer |
|--------------------------|-----------:|------------:|--------:|-------:|
| host's loopback          |       40.0 |        20.0 |    10.0 |   0.50 |
| beside                   | 100 to 300 |           – |     100 |      – |
`
	if got := sample().Markdown(nil); got != want {
		t.Errorf("%s", got)
	}
}

func TestCSV(t *testing.T) {
	var b strings.Builder
	if err := sample().Write(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Read(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := again.Markdown(nil), sample().Markdown(nil); got != want {
		t.Errorf("%s\nwanted\n%s", got, want)
	}
	for _, bad := range []string{"", "row,unit,who\n", "row,unit,who,value\na,b,c,d\n", "row,unit,who,value\na,b,c\n", "a,b,c,1\n"} {
		if _, err := Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func TestFill(t *testing.T) {
	dir := t.TempDir()
	if err := sample().WriteFile(filepath.Join(dir, "x.csv")); err != nil {
		t.Fatal(err)
	}
	const begin = "<!-- results: x.csv rows=^host (made by `make performance`) -->\n"
	doc := "before\n" + begin + "old\n" + markerEnd + "after\n"
	got, err := Fill(doc, dir)
	want := "before\n" + begin + `
| p50 µs (lower is better) | pasta | slirp4netns | aldente | × peer |
|--------------------------|------:|------------:|--------:|-------:|
| host's loopback          |  40.0 |        20.0 |    10.0 |   0.50 |

` + markerEnd + "after\n"
	if err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
	if again, err := Fill(got, dir); err != nil || again != got {
		t.Errorf("a second time: %s, %v", again, err)
	}
	for what, bad := range map[string]string{
		"no end":            "before\n" + begin + "old\n",
		"no such row":       strings.Replace(doc, "^host", "^nobody", 1),
		"no such file":      strings.Replace(doc, "x.csv", "y.csv", 1),
		"shown nowhere":     "before\n",
		"no regexp of rows": strings.Replace(doc, "^host", "(", 1),
	} {
		if _, err := Fill(bad, dir); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestSVG(t *testing.T) {
	p := Plot{Title: "x", Unit: "Gbit/s", Groups: []string{"1", "2"}, Rows: []string{`TCP "up", 1 flow`, "not measured"}}
	svg := sample().SVG(p)
	if n := strings.Count(svg, `font-size="9"`); n != 4 {
		t.Errorf("%d bars of 4\n%s", n, svg)
	}
}
