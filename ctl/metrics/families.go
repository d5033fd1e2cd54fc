// SPDX-License-Identifier: Apache-2.0

// Package metrics makes metrics of what instances say: as OpenMetrics text of one
// instance, or served over HTTP of all of them.
package metrics

import (
	"cmp"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// prefix of all names.
const prefix = "aldente_"

// Bounds on what one instance may bring.
const (
	maxLabels  = 16
	maxBuckets = 256
	maxName    = 128
)

var (
	metricName = regexp.MustCompile(`^[a-z][a-z0-9_]*[a-z0-9]$`)
	labelName  = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

// units by which a name may end, before _total.
var units = []string{"seconds", "bytes", "ratio"}

// families gathers metrics by name. What does not fit to what is there already is left
// out: the first instance says what a metric is.
type families struct {
	byName map[string]*dto.MetricFamily
	seen   map[string]bool // metrics, by name and labels
}

func newFamilies() *families {
	return &families{byName: map[string]*dto.MetricFamily{}, seen: map[string]bool{}}
}

// list has all, ordered by name.
func (f *families) list() []*dto.MetricFamily {
	return slices.SortedFunc(maps.Values(f.byName), func(a, b *dto.MetricFamily) int {
		return cmp.Compare(a.GetName(), b.GetName())
	})
}

// labels are names and values of labels.
type labels map[string]string

// add adds a metric to the family of its name, without the prefix.
func (f *families) add(name, help string, kind dto.MetricType, own, more labels, m *dto.Metric) {
	if len(name) > maxName || !metricName.MatchString(name) {
		return
	}
	name = prefix + name
	var pairs []*dto.LabelPair
	id := name
	for _, set := range []labels{own, more} {
		for _, k := range slices.Sorted(maps.Keys(set)) {
			if len(k) > maxName || !labelName.MatchString(k) || len(pairs) >= maxLabels ||
				slices.ContainsFunc(pairs, func(p *dto.LabelPair) bool { return p.GetName() == k }) {
				continue
			}
			pairs = append(pairs, &dto.LabelPair{Name: proto.String(k), Value: proto.String(watch.Text(set[k]))})
		}
	}
	slices.SortFunc(pairs, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
	for _, p := range pairs {
		id += "\x00" + p.GetName() + "\x00" + p.GetValue()
	}
	fam := f.byName[name]
	if fam == nil {
		fam = &dto.MetricFamily{Name: proto.String(name), Help: proto.String(watch.Text(help)), Type: kind.Enum()}
		for _, u := range units {
			if strings.HasSuffix(strings.TrimSuffix(name, "_total"), "_"+u) {
				fam.Unit = proto.String(u)
			}
		}
		f.byName[name] = fam
	}
	if fam.GetType() != kind || f.seen[id] {
		return
	}
	f.seen[id] = true
	m.Label = pairs
	fam.Metric = append(fam.Metric, m)
}

func (f *families) gauge(name, help string, own, more labels, v float64) {
	f.add(name, help, dto.MetricType_GAUGE, own, more, &dto.Metric{Gauge: &dto.Gauge{Value: proto.Float64(v)}})
}

func (f *families) counter(name, help string, own, more labels, v float64) {
	f.add(name, help, dto.MetricType_COUNTER, own, more, &dto.Metric{Counter: &dto.Counter{Value: proto.Float64(v)}})
}

// sample adds all that an instance has said. Its name is known from elsewhere.
func (f *families) sample(name string, s *watch.Sample) {
	own := labels{"pid": name}
	if st := s.Status; st != nil {
		own["guest"], own["personality"] = st.Guest, st.Personality
		f.status(st, own)
	}
	if s.Counters == nil {
		return
	}
	for i := range s.Counters.Counters {
		c := &s.Counters.Counters[i]
		switch {
		case strings.HasPrefix(c.Name, "exporter_"): // those are not an instance's to say
		case math.IsNaN(c.Value) || math.IsInf(c.Value, 0):
		case !strings.HasSuffix(c.Name, "_total"):
			f.gauge(c.Name, c.Help, own, c.Labels, c.Value)
		case c.Value >= 0:
			f.counter(c.Name, c.Help, own, c.Labels, c.Value)
		}
	}
	for i := range s.Counters.Histograms {
		f.histogram(&s.Counters.Histograms[i], own)
	}
}

// status adds what the status says in numbers.
func (f *families) status(st *api.StatusReply, own labels) {
	f.gauge("instance_info", "What an instance is; always 1.", own, labels{
		"version": st.Version, "link": st.Link, "user": strconv.Itoa(st.User), "interface": st.Interface, "log_level": st.LogLevel,
	}, 1)
	if t, err := time.Parse(time.RFC3339, st.Started); err == nil {
		f.gauge("start_time_seconds", "When the instance was started, in seconds since 1970.", own, nil, float64(t.UnixMilli())/1e3)
	}
	f.gauge("guest_connected", "Whether the guest is connected, 1 or 0.", own, nil, truth(st.Connected))
	f.gauge("worker_running", "Whether there is a worker, 1 or 0.", own, nil, truth(st.WorkerPID != 0))
	f.counter("worker_restarts_total", "How often the worker was replaced after its death.", own, nil, float64(max(st.Restarts, 0)))
	if n := st.Network; n != nil {
		f.gauge("network_connected", "Whether the host has a network that the guest's follows, 1 or 0.", own, nil, truth(n.Connected))
		f.counter("network_changes_total", "Changes of the host's network that concerned the guest.", own, nil, float64(n.Changes))
	}
	f.gauge("mtu_bytes", "MTU of the link to the guest.", own, nil, float64(st.MTU))
	for _, l := range st.Limits {
		which := labels{"limit": l.Name}
		f.gauge("limit_used", "How much of a budget of the instance is used.", own, which, float64(l.Used))
		if l.Max > 0 { // else there is none
			f.gauge("limit_max", "Budgets of the instance.", own, which, float64(l.Max))
		}
		f.counter("limit_refused_total", "Requests that a budget refused.", own, which, float64(l.Refused))
	}
}

// histogram adds a histogram, if it is one.
func (f *families) histogram(h *api.Histogram, own labels) {
	if strings.HasPrefix(h.Name, "exporter_") || len(h.Bounds) > maxBuckets || len(h.Counts) != len(h.Bounds)+1 || math.IsNaN(h.Sum) || math.IsInf(h.Sum, 0) {
		return
	}
	out := &dto.Histogram{SampleSum: proto.Float64(h.Sum)}
	total := uint64(0)
	for i, n := range h.Counts {
		total += n
		if i == len(h.Bounds) {
			break
		}
		if b := h.Bounds[i]; math.IsNaN(b) || math.IsInf(b, 0) || i > 0 && b <= h.Bounds[i-1] {
			return
		}
		out.Bucket = append(out.Bucket, &dto.Bucket{UpperBound: proto.Float64(h.Bounds[i]), CumulativeCount: proto.Uint64(total)})
	}
	out.SampleCount = proto.Uint64(total)
	f.add(h.Name, h.Help, dto.MetricType_HISTOGRAM, own, nil, &dto.Metric{Histogram: out})
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
