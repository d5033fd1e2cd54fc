// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// fake is an instance with some replies.
type fake struct {
	name    string
	replies map[string][]api.Reply
	err     error
	hang    bool
}

func (f *fake) Name() string { return f.name }

func (f *fake) Ask(ctx context.Context, req api.Request, each func(*api.Reply) error) error {
	if f.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	for i := range f.replies[req.Command] {
		if err := each(&f.replies[req.Command][i]); err != nil {
			return err
		}
	}
	return f.err
}

func good(pid int) *fake {
	return &fake{name: fmt.Sprint(pid), replies: map[string][]api.Reply{
		api.Status: {{Status: &api.StatusReply{
			Version: "1.2", Personality: "pasta", PID: pid, WorkerPID: pid + 1, User: 1000, Started: "2026-11-29T12:00:00Z", Link: "tap", Connected: true,
			Restarts: 2, Guest: "curl \"x\" \\ y", MTU: 65520, LogLevel: "info", Limits: []api.Limit{{Name: "tcp flows", Used: 3, Max: 100, Refused: 1}},
			Network: &api.NetworkReply{Connected: true, Template: "eth0", Changes: 4},
		}}},
		api.Counters: {{Counters: &api.CountersReply{
			Counters: []api.Counter{
				{Name: "traffic_bytes_total", Help: "Bytes.", Labels: map[string]string{"direction": "sent"}, Value: 12345},
				{Name: "traffic_bytes_total", Help: "Bytes.", Labels: map[string]string{"direction": "received"}, Value: 67},
				{Name: "flows", Help: "Flows.", Labels: map[string]string{"protocol": "tcp"}, Value: 3},
			},
			Histograms: []api.Histogram{{Name: "turn_duration_seconds", Help: "Turns.", Bounds: []float64{0.001, 0.01}, Counts: []uint64{5, 2, 1}, Sum: 0.25}},
		}}},
	}}
}

func lister(all ...watch.Instance) watch.Lister {
	return func(context.Context) ([]watch.Instance, error) { return all, nil }
}

// parse reads text by Prometheus's own parser.
func parse(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	f, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return f
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.Label {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// scrape asks an exporter as Prometheus does, in the older of the two formats, which
// its parser for Go reads.
func scrape(t *testing.T, e *Exporter) (map[string]*dto.MetricFamily, string) {
	t.Helper()
	s := httptest.NewServer(e.Handler())
	defer s.Close()
	r, err := http.Get(s.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 {
		t.Fatal(r.Status, err, string(b))
	}
	return parse(t, string(b)), string(b)
}

// TestWrite: OpenMetrics as its specification has it, of one instance.
func TestWrite(t *testing.T) {
	var b bytes.Buffer
	if err := Write(t.Context(), good(77), &b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	const own = `guest="curl \"x\" \\ y",`
	for _, want := range []string{
		"# HELP aldente_traffic_bytes Bytes.\n# TYPE aldente_traffic_bytes counter\n# UNIT aldente_traffic_bytes bytes\n",
		`aldente_traffic_bytes_total{direction="sent",` + own + `personality="pasta",pid="77"} 12345.0` + "\n",
		`aldente_flows{` + own + `personality="pasta",pid="77",protocol="tcp"} 3.0` + "\n",
		"# HELP aldente_turn_duration_seconds Turns.\n# TYPE aldente_turn_duration_seconds histogram\n# UNIT aldente_turn_duration_seconds seconds\n",
		`aldente_turn_duration_seconds_bucket{` + own + `personality="pasta",pid="77",le="0.01"} 7` + "\n",
		`aldente_turn_duration_seconds_bucket{` + own + `personality="pasta",pid="77",le="+Inf"} 8` + "\n",
		`aldente_turn_duration_seconds_sum{` + own + `personality="pasta",pid="77"} 0.25` + "\n",
		`link="tap",log_level="info",personality="pasta",pid="77",user="1000",version="1.2"} 1.0` + "\n",
		`limit="tcp flows"`,
		"aldente_worker_restarts_total{",
		"aldente_network_connected{" + own + `personality="pasta",pid="77"} 1.0`,
		"aldente_network_changes_total{" + own + `personality="pasta",pid="77"} 4.0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if !strings.HasSuffix(text, "\n# EOF\n") || strings.Count(text, "# EOF") != 1 {
		t.Error("the end")
	}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		if seen[line] {
			t.Errorf("twice: %s", line)
		}
		seen[line] = true
		if name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "), " "); !strings.HasPrefix(name, "aldente_") && line[0] != '#' {
			t.Errorf("a name without prefix: %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	if err := Write(t.Context(), &fake{err: errors.New("no")}, &b); err == nil {
		t.Error("no error")
	}
}

// TestExporter: all instances in one scrape, with those counted that hang or fail,
// within the time of a scrape.
func TestExporter(t *testing.T) {
	e := NewExporter(lister(good(1), good(2), &fake{name: "3", hang: true}, &fake{name: "4", err: errors.New("no")}, &fake{name: "5"}))
	e.instance, e.scrape = 2*time.Second, 20*time.Second
	f, text := scrape(t, e)
	if n := len(f["aldente_traffic_bytes_total"].GetMetric()); n != 4 {
		t.Errorf("%d metrics of two instances in\n%s", n, text)
	}
	up := map[string]float64{}
	for _, m := range f["aldente_up"].GetMetric() {
		up[label(m, "pid")] = m.GetGauge().GetValue()
	}
	if len(up) != 5 || up["1"]+up["2"] != 2 || up["3"]+up["4"]+up["5"] != 0 {
		t.Error(up)
	}
	skipped := map[string]float64{}
	for _, m := range f["aldente_exporter_skipped_instances_total"].GetMetric() {
		skipped[label(m, "reason")] = m.GetCounter().GetValue()
	}
	if skipped[reasonTimeout] != 1 || skipped[reasonFailed] != 2 || skipped[reasonMany] != 0 {
		t.Error(skipped)
	}
	if f["aldente_exporter_instances"].GetMetric()[0].GetGauge().GetValue() != 5 || f["go_goroutines"] == nil {
		t.Errorf("no figures of the exporter in\n%s", text)
	}
	if h := f["aldente_turn_duration_seconds"].GetMetric(); len(h) != 2 || h[0].GetHistogram().GetSampleCount() != 8 {
		t.Error(h)
	}
}

// TestManyHang: however many hang, a scrape ends.
func TestManyHang(t *testing.T) {
	var all []watch.Instance
	for i := range 10 * abreast {
		all = append(all, &fake{name: fmt.Sprint(i), hang: true})
	}
	e := NewExporter(lister(append(all, good(7000))...))
	e.instance, e.scrape = time.Minute, 300*time.Millisecond
	done := make(chan bool)
	go func() {
		defer close(done)
		f, text := scrape(t, e)
		if len(f["aldente_up"].GetMetric()) != len(all)+1 {
			t.Errorf("%s", text)
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the scrape does not end")
	}
}

// TestChurn: instances come and go between and within scrapes, which come at the same
// time.
func TestChurn(t *testing.T) {
	var turn atomic.Int64
	e := NewExporter(func(context.Context) (all []watch.Instance, err error) {
		n := int(turn.Add(1))
		for i := range n % 7 {
			if in := good(n + i); i%3 == 2 {
				all = append(all, &fake{name: in.name, err: io.ErrUnexpectedEOF})
			} else {
				all = append(all, in)
			}
		}
		if n%11 == 0 {
			return nil, errors.New("no list")
		}
		return all, nil
	})
	done := make(chan bool, 4)
	for range cap(done) {
		go func() {
			defer func() { done <- true }()
			for range 30 {
				if _, err := e.Gather(); err != nil && err.Error() != "no list" {
					t.Error(err)
				}
			}
		}()
	}
	for range cap(done) {
		<-done
	}
	scrape(t, e)
}

// TestHostileInstance: what is malformed is left out, and spoils nothing of others.
func TestHostileInstance(t *testing.T) {
	evil := good(9)
	evil.name = "9"
	evil.replies[api.Status][0].Status.Guest = "a\x1b[2J\n\xff" + strings.Repeat("g", 5000)
	evil.replies[api.Status][0].Status.PID = 1 // another's
	c := evil.replies[api.Counters][0].Counters
	many := map[string]string{}
	for i := range 100 {
		many[fmt.Sprintf("l%d", i)] = "x"
	}
	c.Counters = append(c.Counters,
		api.Counter{Name: "traffic_bytes_total", Help: "Something else.", Labels: map[string]string{"direction": "sent"}, Value: 1}, // twice
		api.Counter{Name: "flows_total", Value: -1},
		api.Counter{Name: "nan", Value: math.NaN()},
		api.Counter{Name: "Bad-Name\n", Value: 1},
		api.Counter{Name: "", Value: 1},
		api.Counter{Name: strings.Repeat("n", 1000), Value: 1},
		api.Counter{Name: "labels", Labels: map[string]string{"": "x", "__name__": "x", "a b": "x", "pid": "1", "le": "\xff\x00"}, Value: 1},
		api.Counter{Name: "many_labels", Labels: many, Value: 1},
		api.Counter{Name: "exporter_instances", Value: 99},
		api.Counter{Name: "turn_duration_seconds", Value: 1}, // a histogram elsewhere
		api.Counter{Name: "turn_duration_seconds_count", Value: 1},
		api.Counter{Name: "help", Help: "two\nlines \\", Value: 1},
	)
	c.Histograms = append(c.Histograms,
		api.Histogram{Name: "short", Bounds: []float64{1, 2}, Counts: []uint64{1}},
		api.Histogram{Name: "falling", Bounds: []float64{2, 1}, Counts: []uint64{1, 1, 1}},
		api.Histogram{Name: "inf", Bounds: []float64{math.Inf(1)}, Counts: []uint64{1, 1}},
		api.Histogram{Name: "nan_sum", Sum: math.NaN(), Counts: []uint64{1}},
		api.Histogram{Name: "long", Bounds: make([]float64, 1000), Counts: make([]uint64, 1001)},
		api.Histogram{Name: "exporter_scrape_duration_seconds", Counts: []uint64{1}},
	)
	f, text := scrape(t, NewExporter(lister(good(1), evil, good(2))))
	pids := map[string]int{}
	for _, m := range f["aldente_traffic_bytes_total"].GetMetric() {
		pids[label(m, "pid")]++
	}
	if pids["1"] != 2 || pids["2"] != 2 || pids["9"] != 2 {
		t.Errorf("%v in\n%s", pids, text)
	}
	for _, bad := range []string{"flows_total", "nan", "short", "falling", "inf", "nan_sum", "long"} {
		if f["aldente_"+bad] != nil {
			t.Errorf("%s is there", bad)
		}
	}
	if m := f["aldente_labels"].GetMetric()[0]; label(m, "pid") != "9" || label(m, "a b") != "" || strings.ContainsRune(label(m, "le"), 0) {
		t.Error(m)
	}
	if n := len(f["aldente_many_labels"].GetMetric()[0].Label); n > maxLabels {
		t.Errorf("%d labels", n)
	}
	if f["aldente_exporter_instances"].GetMetric()[0].GetGauge().GetValue() != 3 {
		t.Error("an instance speaks for the exporter")
	}
	if len(text) > 1<<20 || strings.Contains(text, "\x1b") {
		t.Errorf("%d bytes", len(text))
	}
	var b bytes.Buffer
	if err := Write(t.Context(), evil, &b); err != nil || !strings.HasSuffix(b.String(), "# EOF\n") {
		t.Error(err)
	}
}

// TestParseListen: all addresses only if somebody says so.
func TestParseListen(t *testing.T) {
	for s, want := range map[string]string{
		DefaultListen: DefaultListen, "localhost:1": "127.0.0.1:1", "[::1]:9741": "[::1]:9741", "0.0.0.0:9741": "0.0.0.0:9741", "[::]:9741": "[::]:9741",
		":9741": "", "9741": "", "": "", "example.org:9741": "", "127.0.0.1": "", "127.0.0.1:http": "", "127.0.0.1:70000": "", "127.1:80": "", "[127.0.0.1:80": "",
	} {
		if got, err := ParseListen(s); (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v, want %q", s, got, err, want)
		}
	}
}

// TestServe: it serves until it is told to end, and slow clients do not keep it.
func TestServe(t *testing.T) {
	e := NewExporter(lister(good(1)))
	e.scrape = 2 * time.Second
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Serve(ctx, l) }()
	slow, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprint(slow, "GET /metrics HTTP/1.1\r\n")
	for path, want := range map[string]int{"/metrics": 200, "/": 200, "/other": 404} {
		r, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}
