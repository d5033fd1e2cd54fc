// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/control/api"
	"aldente/ipc"
)

// worker answers as its script says, at once or never.
type worker struct {
	c      *Collector
	script func(a *ipc.Ask) error // nil: there is no worker
	asked  []ipc.Ask
	result chan error // of the script
}

func (w *worker) SendNow(rec []byte) error {
	if w.script == nil {
		return unix.EPIPE
	}
	var a ipc.Ask
	if err := a.Decode(rec); err != nil {
		return err
	}
	w.asked = append(w.asked, a)
	script := w.script
	go func() { w.result <- script(&a) }()
	return nil
}

type broker struct{ usage [budget.Kinds]budget.Usage }

func (b *broker) Usage() [budget.Kinds]budget.Usage { return b.usage }
func (b *broker) Refused() (total, named int)       { return 17, 3 }
func (b *broker) FlowRule(f *ipc.Flow) string       { return fmt.Sprintf("--allow %d", f.RemotePort) }

func collect(script func(w *worker, a *ipc.Ask) error) (*Collector, *worker) {
	b := &broker{}
	b.usage[budget.UDP] = budget.Usage{Limit: 100, Held: 5, Most: 9, Opened: 20, Refused: 3, By: [budget.Reasons]uint64{budget.TooFast: 3}}
	b.usage[budget.Echo].Limit = budget.Unlimited
	c := New(b)
	c.patience = 10 * time.Second
	w := &worker{c: c, result: make(chan error, 1000)}
	if script != nil {
		w.script = func(a *ipc.Ask) error { return script(w, a) }
	}
	c.SetWorker(w)
	return c, w
}

func (w *worker) flows(flows ...ipc.Flow) error {
	var msg []byte
	for _, f := range flows {
		b := make([]byte, ipc.FlowSize)
		f.Encode(b)
		msg = append(msg, b...)
	}
	return w.c.Take(ipc.KindFlow, msg)
}

func (w *worker) figures(all ...ipc.Figures) error {
	var msg []byte
	for _, f := range all {
		b := make([]byte, ipc.FiguresSize)
		f.Encode(b)
		msg = append(msg, b...)
	}
	return w.c.Take(ipc.KindFigures, msg)
}

func (w *worker) end(id, next uint32) error {
	b := make([]byte, ipc.AnsweredSize)
	(&ipc.Answered{ID: id, Next: next}).Encode(b)
	return w.c.Take(ipc.KindAnswered, b)
}

var (
	address4 = [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}
	address6 = [16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 1}
)

func aFlow(id uint32) ipc.Flow {
	return ipc.Flow{ID: id, Proto: ipc.ProtoTCP, State: ipc.FlowEstablished, Guest: address4, GuestPort: 40000, Remote: address6, RemotePort: 443}
}

// all are the flows that a collector lists.
func all(c *Collector) (flows []api.Flow, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for some, e := range c.Flows(ctx) {
		if flows, err = append(flows, some...), e; e != nil {
			break
		}
	}
	return flows, err
}

// TestFlows: what the worker says in several answers comes in its order, in our words.
func TestFlows(t *testing.T) {
	c, w := collect(func(w *worker, a *ipc.Ask) error {
		if a.Cursor != 0 {
			f := ipc.Flow{ID: a.ID, Proto: ipc.ProtoICMPv6, State: ipc.FlowRefused, Guest: address6, GuestPort: 7, Remote: address6}
			return errors.Join(w.flows(f), w.end(a.ID, 0))
		}
		f := aFlow(a.ID)
		f.Age, f.Idle, f.RTT, f.Sent, f.Received, f.SentPackets, f.ReceivedPackets, f.Queued, f.Retransmits = 2500e6, 5e8, 1500, 1, 2, 3, 4, 5, 6
		gone := ipc.Flow{ID: a.ID, Proto: ipc.ProtoUDP, State: ipc.FlowUnanswered, Direction: ipc.FlowBypassIn}
		return errors.Join(w.flows(f, gone), w.end(a.ID, 1000))
	})
	got, err := all(c)
	if err != nil {
		t.Fatal(err)
	}
	want := []api.Flow{
		{Protocol: "tcp", Direction: "out", State: "ESTABLISHED", Guest: "192.0.2.1:40000", Remote: "[2001:db8::1]:443", Age: 2.5, Idle: 0.5, RTT: 0.0015,
			Sent: 1, Received: 2, SentPackets: 3, ReceivedPackets: 4, Queued: 5, Retransmits: 6, Rule: "--allow 443"},
		{Protocol: "udp", Direction: "bypass-in", State: "unanswered", Rule: "--allow 0"},
		{Protocol: "icmp", Direction: "out", State: "refused", Guest: "[2001:db8::1]:7", Remote: "2001:db8::1", Rule: "--allow 0"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if len(w.asked) != 2 || w.asked[1].Cursor != 1000 {
		t.Errorf("asked: %+v", w.asked)
	}
}

// TestLies: an answer that says what it must not is the worker's end, and whoever has
// asked hears of it.
func TestLies(t *testing.T) {
	many := make([]ipc.Flow, ipc.MaxFigures+1)
	for name, script := range map[string]func(w *worker, a *ipc.Ask) error{
		"figures instead of flows":  func(w *worker, a *ipc.Ask) error { return w.figures(ipc.Figures{ID: a.ID, N: 1}) },
		"flows of another question": func(w *worker, a *ipc.Ask) error { return w.flows(aFlow(a.ID + 1)) },
		"end of another question":   func(w *worker, a *ipc.Ask) error { return w.end(a.ID-1, 0) },
		"more flows than asked for": func(w *worker, a *ipc.Ask) error {
			for k := range many {
				many[k] = aFlow(a.ID)
			}
			return w.flows(many...)
		},
		"more and more flows": func(w *worker, a *ipc.Ask) error {
			for range ipc.MaxFigures {
				if err := w.flows(aFlow(a.ID)); err != nil {
					return fmt.Errorf("too early: %s", err)
				}
			}
			return w.flows(aFlow(a.ID))
		},
		"in circles":             func(w *worker, a *ipc.Ask) error { return w.end(a.ID, 1) },
		"on the spot":            func(w *worker, a *ipc.Ask) error { return w.end(a.ID, ipc.MaxFigures-1) },
		"a flow in no direction": func(w *worker, a *ipc.Ask) error { f := aFlow(a.ID); f.Direction = 9; return w.flows(f) },
		"half a flow": func(w *worker, a *ipc.Ask) error {
			b := make([]byte, ipc.FlowSize)
			f := aFlow(a.ID)
			f.Encode(b)
			return w.c.Take(ipc.KindFlow, b[:20])
		},
		"half an end": func(w *worker, a *ipc.Ask) error { return w.c.Take(ipc.KindAnswered, ipc.Empty(ipc.KindAnswered)) },
		"no figures":  func(w *worker, a *ipc.Ask) error { return w.c.Take(ipc.KindOpen, make([]byte, ipc.OpenSize)) },
		"an end, and another": func(w *worker, a *ipc.Ask) error {
			if err := w.end(a.ID, 0); err != nil {
				return fmt.Errorf("too early: %s", err)
			}
			return w.end(a.ID, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, w := collect(script)
			go func() {
				if err := <-w.result; !errors.Is(err, ipc.ErrMalformed) {
					t.Errorf("%v", err)
				}
				w.script = nil
				c.WorkerGone() // as the supervisor does then
				w.result <- nil
			}()
			if _, err := all(c); !errors.Is(err, ErrGone) && name != "an end, and another" {
				t.Errorf("who has asked hears: %v", err)
			}
			<-w.result
		})
	}
	c, w := collect(nil)
	for _, err := range []error{w.flows(aFlow(0)), w.figures(ipc.Figures{N: 1}), w.end(0, 0)} {
		if !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("nobody has asked: %v", err)
		}
	}
	if _, err := all(c); !errors.Is(err, ErrNoWorker) {
		t.Errorf("no worker: %v", err)
	}
}

// TestEndlessFlows: the longest listing that a worker may give has an end, and whoever
// stops listening ends it at once.
func TestEndlessFlows(t *testing.T) {
	endless := func(w *worker, a *ipc.Ask) error {
		next := a.Cursor + uint32(a.Max)
		if next >= ipc.MaxCursor {
			next = 0
		}
		return w.end(a.ID, next)
	}
	c, w := collect(endless)
	w.result = make(chan error, ipc.MaxCursor)
	if flows, err := all(c); err != nil || len(flows) != 0 || len(w.asked) > ipc.MaxCursor/ipc.MaxFigures {
		t.Errorf("%d flows in %d answers, %v", len(flows), len(w.asked), err)
	}
	c, w = collect(func(w *worker, a *ipc.Ask) error { return errors.Join(w.flows(aFlow(a.ID)), w.end(a.ID, a.Cursor+32)) })
	for range c.Flows(context.Background()) {
		break
	}
	if len(w.asked) != 1 {
		t.Errorf("asked %d times", len(w.asked))
	}
}

// TestSilence: a worker that does not answer has nobody wait for long, is not asked a
// second time meanwhile, and may answer later.
func TestSilence(t *testing.T) {
	let := make(chan struct{})
	c, w := collect(func(w *worker, a *ipc.Ask) error {
		if a.ID == 1 {
			<-let
		}
		return w.end(a.ID, 0)
	})
	c.patience = 50 * time.Millisecond
	for range 3 {
		if _, err := all(c); !errors.Is(err, ErrSilent) {
			t.Errorf("%v", err)
		}
	}
	r := c.Counters(context.Background())
	if v := value(t, &r, "worker_up", nil); v != 0 {
		t.Errorf("worker_up=%v", v)
	}
	if len(w.asked) != 1 {
		t.Errorf("asked %d times", len(w.asked))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, err := range c.Flows(ctx) {
		if !errors.Is(err, ErrSilent) {
			t.Errorf("who has gone hears: %v", err)
		}
	}
	close(let)
	if err := <-w.result; err != nil {
		t.Error("a late answer:", err)
	}
	c.patience = 10 * time.Second
	if _, err := all(c); err != nil || len(w.asked) != 2 {
		t.Errorf("afterwards: %v, asked %d times", err, len(w.asked))
	}
}

func value(t *testing.T, r *api.CountersReply, name string, labels map[string]string) float64 {
	t.Helper()
	for _, c := range r.Counters {
		if c.Name == name && fmt.Sprint(c.Labels) == fmt.Sprint(labels) {
			return c.Value
		}
	}
	t.Fatalf("there is no %s%v", name, labels)
	return 0
}

// counting answers with a value for each figure.
func counting(v func(k int) uint64) func(w *worker, a *ipc.Ask) error {
	return func(w *worker, a *ipc.Ask) error {
		var all []ipc.Figures
		for at := 0; at < ipc.NumFigures; at += ipc.FigureValues {
			f := ipc.Figures{ID: a.ID, First: uint16(at), N: uint8(min(ipc.FigureValues, ipc.NumFigures-at))}
			for k := range int(f.N) {
				f.Values[k] = v(at + k)
			}
			all = append(all, f)
		}
		return errors.Join(w.figures(all...), w.end(a.ID, 0))
	}
}

// TestCounters: figures have their names, those of workers are added, and no worker
// makes them less.
func TestCounters(t *testing.T) {
	ctx := context.Background()
	frames := map[string]string{"result": "received"}
	bypass := map[string]string{"protocol": "bypass_udp"}
	n := uint64(1)
	script := counting(func(k int) uint64 { return n*1000 + uint64(k) })
	c, w := collect(script)
	check := func(up, restarts, framesWant, flowsWant, lastBucket float64) {
		t.Helper()
		r := c.Counters(ctx)
		last := r.Histograms[ipc.NumHistograms-1]
		for what, v := range map[string][2]float64{
			"up":       {value(t, &r, "worker_up", nil), up},
			"restarts": {value(t, &r, "worker_restarts_total", nil), restarts},
			"frames":   {value(t, &r, "guest_frames_total", frames), framesWant},
			"flows":    {value(t, &r, "flows", bypass), flowsWant},
			"bucket":   {float64(last.Counts[ipc.Buckets-1]), lastBucket},
			"refused":  {value(t, &r, "egress_refused_total", nil), 17},
			"too fast": {value(t, &r, "sockets_refused_total", map[string]string{"kind": "udp", "reason": "too_fast"}), 3},
		} {
			if v[0] != v[1] {
				t.Errorf("%s: %v, want %v", what, v[0], v[1])
			}
		}
	}
	flows := float64(ipc.FirstGauge + ipc.GaugeBypassUDP)
	end := float64(ipc.NumFigures - 2)
	check(1, 0, 1000, 1000+flows, 1000+end)
	n = 3
	check(1, 0, 3000, 3000+flows, 3000+end)
	n = 2 // it takes something back, which counts for what there is now only
	check(1, 0, 3000, 2000+flows, 3000+end)
	w.script = nil
	c.WorkerGone()
	check(0, 1, 3000, 0, 3000+end)
	n, w.script = 1, func(a *ipc.Ask) error { return script(w, a) }
	check(1, 1, 4000, 1000+flows, 4000+2*end)
	n = math.MaxUint64/1000 - 1
	c.Counters(ctx)
	w.script = nil
	c.WorkerGone()
	n, w.script = 5, func(a *ipc.Ask) error { return script(w, a) }
	if r := c.Counters(ctx); value(t, &r, "guest_frames_total", frames) < math.MaxUint64/2 {
		t.Error("a sum has wrapped")
	}
}

// TestNames: each figure has a name, as OpenMetrics has them, help that is the same
// wherever the name is, and labels that tell it from the others.
func TestNames(t *testing.T) {
	c, _ := collect(counting(func(int) uint64 { return 1 }))
	r := c.Counters(context.Background())
	help, seen := map[string]string{}, map[string]bool{}
	good := regexp.MustCompile(`^[a-z][a-z0-9_]*[a-z0-9]$`)
	check := func(name, text string, labels map[string]string) {
		key := fmt.Sprint(name, labels)
		if h, ok := help[name]; !good.MatchString(name) || seen[key] || text == "" || !strings.HasSuffix(text, ".") || ok && h != text {
			t.Errorf("%s: %q", key, text)
		}
		help[name], seen[key] = text, true
		for k, v := range labels {
			if !good.MatchString(k) || !good.MatchString(v) {
				t.Errorf("%s: label %q=%q", name, k, v)
			}
		}
	}
	for _, c := range r.Counters {
		check(c.Name, c.Help, c.Labels)
	}
	for _, h := range r.Histograms {
		check(h.Name, h.Help, nil)
		if len(h.Counts) != len(h.Bounds)+1 || !slices.IsSorted(h.Bounds) || h.Counts[0] != 1 || h.Sum != 1e-9 {
			t.Errorf("%s: %d bounds, %d counts, sum %v", h.Name, len(h.Bounds), len(h.Counts), h.Sum)
		}
	}
	if len(counters) != len(ipc.Counters) || len(r.Counters) < ipc.FirstHistogram || len(r.Histograms) != ipc.NumHistograms {
		t.Errorf("%d names for %d counters, %d told", len(counters), len(ipc.Counters), len(r.Counters))
	}
	for _, field := range ipc.Counters {
		if n, ok := counters[field]; !ok || !strings.HasSuffix(n.name, "_total") {
			t.Errorf("%s is called %q", field, n.name)
		}
	}
	for _, words := range [][]string{states[1:], directions[:], kinds[:], reasons[1:]} {
		for k, w := range words {
			if w == "" || slices.Index(words, w) != k {
				t.Errorf("%q", words)
			}
		}
	}
}
