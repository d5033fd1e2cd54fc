// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// DefaultListen is where the exporter listens if nobody says otherwise.
const DefaultListen = "127.0.0.1:9741"

// Bounds on a scrape. Prometheus itself gives up after ten seconds.
const (
	instanceTime = 3 * time.Second // for one instance
	scrapeTime   = 6 * time.Second // for all
	abreast      = 16              // instances that are asked at a time
	maxInstances = 1024            // of which metrics are made
	maxScrapes   = 4               // at a time
)

// Write writes the metrics of one instance as OpenMetrics text.
func Write(ctx context.Context, in watch.Instance, w io.Writer) error {
	s, err := watch.Look(ctx, in, api.Status, api.Counters)
	if err != nil {
		return err
	}
	f := newFamilies()
	f.sample(in.Name(), s)
	var text bytes.Buffer
	for _, fam := range f.list() {
		if _, err := expfmt.MetricFamilyToOpenMetrics(&text, fam); err != nil {
			return err
		}
	}
	if _, err := expfmt.FinalizeOpenMetrics(&text); err != nil {
		return err
	}
	_, err = w.Write(text.Bytes()) // in one piece: w may look at whole characters
	return err
}

// Exporter makes metrics of all instances whenever it is asked for them.
type Exporter struct {
	list     watch.Lister
	own      *prometheus.Registry
	skipped  *prometheus.CounterVec
	duration prometheus.Histogram
	instance time.Duration
	scrape   time.Duration
}

// reasons for which an instance is not among the metrics.
const (
	reasonTimeout = "timeout"
	reasonFailed  = "failed"
	reasonMany    = "too_many"
)

// NewExporter returns an exporter of what list finds.
func NewExporter(list watch.Lister) *Exporter {
	e := &Exporter{
		list: list, own: prometheus.NewRegistry(), instance: instanceTime, scrape: scrapeTime,
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "exporter_skipped_instances_total",
			Help: "Instances that were left out of a scrape, by reason: timeout, failed or too_many.",
		}, []string{"reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    prefix + "exporter_scrape_duration_seconds",
			Help:    "How long it took to ask all instances.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	for _, r := range []string{reasonTimeout, reasonFailed, reasonMany} {
		e.skipped.WithLabelValues(r)
	}
	e.own.MustRegister(e.skipped, e.duration, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return e
}

// Gather asks all instances, those that come and go included. It ends within the time
// of a scrape, with those that have answered by then.
func (e *Exporter) Gather() ([]*dto.MetricFamily, error) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), e.scrape)
	defer cancel()
	all, err := e.list(ctx)
	if err != nil {
		return nil, err
	}
	f := newFamilies()
	f.gauge("exporter_instances", "Instances that were found by the last scrape.", nil, nil, float64(len(all)))
	if len(all) > maxInstances {
		e.skipped.WithLabelValues(reasonMany).Add(float64(len(all) - maxInstances))
		all = all[:maxInstances]
	}
	samples := e.askAll(ctx, all)
	for i, s := range samples {
		// Without an answer, the name, which is the process number, is all that is known.
		up := labels{"pid": all[i].Name()}
		f.gauge("up", "Whether an instance has answered, 1 or 0.", up, nil, truth(s != nil))
		if s != nil {
			f.sample(all[i].Name(), s)
		}
	}
	e.duration.Observe(time.Since(begun).Seconds())
	return f.list(), nil
}

// askAll asks some instances at a time, until all have answered or time is up. There is
// no sample of an instance that has not answered.
func (e *Exporter) askAll(ctx context.Context, all []watch.Instance) []*watch.Sample {
	samples := make([]*watch.Sample, len(all))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(abreast, len(all)) {
		wg.Go(func() {
			for i := range next {
				samples[i] = e.ask(ctx, all[i])
			}
		})
	}
	for i := range all {
		next <- i
	}
	close(next)
	wg.Wait()
	return samples
}

func (e *Exporter) ask(ctx context.Context, in watch.Instance) *watch.Sample {
	ctx, cancel := context.WithTimeout(ctx, e.instance)
	defer cancel()
	s, err := watch.Look(ctx, in, api.Status, api.Counters)
	if err == nil && s.Status == nil {
		err = errors.New("no status")
	}
	switch {
	case err == nil:
		return s
	case ctx.Err() != nil:
		e.skipped.WithLabelValues(reasonTimeout).Inc()
	default:
		e.skipped.WithLabelValues(reasonFailed).Inc()
	}
	return nil
}

// Handler serves /metrics, and a page that says so.
func (e *Exporter) Handler() http.Handler {
	mux := http.NewServeMux()
	// The exporter's own come last: what this scrape has skipped counts already.
	both := prometheus.Gatherers{e, e.own}
	mux.Handle("GET /metrics", promhttp.HandlerFor(both, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, EnableOpenMetrics: true,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "aldente's metrics are at /metrics\n")
	})
	return mux
}

// ParseListen reads where to listen: an address and a port. All addresses have to be
// asked for by name, since whoever can connect sees all metrics.
func ParseListen(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("'%s' is no address and port (as in %s)", s, DefaultListen)
	}
	switch host {
	case "localhost":
		host = "127.0.0.1"
	case "":
		return netip.AddrPort{}, fmt.Errorf("'%s' names no address: say 127.0.0.1:%s, or 0.0.0.0:%s or [::]:%s if others are to see the metrics", s, port, port, port)
	}
	ap, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("'%s' is no address and port (as in %s; names are not looked up)", s, DefaultListen)
	}
	return ap, nil
}

// Serve serves metrics until the context ends.
func (e *Exporter) Serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler: e.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 2 * e.scrape, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), e.scrape)
	defer cancel()
	if err := s.Shutdown(end); err != nil {
		s.Close()
	}
	return nil
}
