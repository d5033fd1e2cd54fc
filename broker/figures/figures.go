// SPDX-License-Identifier: Apache-2.0

// Package figures asks the worker what it has counted and which flows it has.
//
// The worker is treated as its guest's. It may tell lies: then figures are wrong, and
// nothing else. What it says is bounded, in numbers and in time; it says it when it is
// asked and not otherwise; and all words are ours.
package figures

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"aldente/broker/budget"
	"aldente/broker/control/api"
	"aldente/ipc"
)

// patience is how long a worker may take for one answer. An honest one needs a turn,
// a millisecond at most.
const patience = 2 * time.Second

// Errors of those who ask.
var (
	ErrNoWorker = errors.New("no worker runs at the moment (try again in a moment)")
	ErrSilent   = errors.New("the worker does not answer (try again)")
	ErrGone     = errors.New("the worker has ended meanwhile (try again)")
)

// Worker is who is asked.
type Worker interface {
	// SendNow sends a record, or fails if that is not possible at once.
	SendNow(rec []byte) error
}

// Broker is what the broker counts itself.
type Broker interface {
	// Usage is how each limit was used.
	Usage() [budget.Kinds]budget.Usage
	// Refused is how often the egress rules have refused, and how many destinations
	// the log has named.
	Refused() (total, named int)
	// FlowRule is the rule that allows a flow, or refuses it, in our words.
	FlowRule(*ipc.Flow) string
}

// Collector asks one worker after the other. One question is under way at a time,
// whoever asks.
type Collector struct {
	worker   Worker
	broker   Broker
	turn     chan struct{} // holds one while somebody asks
	patience time.Duration

	mu     sync.Mutex
	asked  *question // that the worker owes an answer to, nil: none
	lastID uint32
	ended  int // workers so far

	// Figures of this worker as last known, and the sum of those before.
	now, before [ipc.NumFigures]uint64
}

// question is one that was sent to the worker, and what has come of its answer.
type question struct {
	ipc.Ask
	since   time.Time
	flows   []ipc.Flow
	figures []ipc.Figures
	next    uint32
	err     error
	done    chan struct{} // closed when all has come, or nothing will
}

// New makes a collector. SetWorker has to be called before anybody asks.
func New(b Broker) *Collector {
	return &Collector{broker: b, turn: make(chan struct{}, 1), patience: patience}
}

// SetWorker says who is asked.
func (c *Collector) SetWorker(w Worker) { c.worker = w }

// WorkerGone notes that the worker has ended, and the next begins to count at zero.
// What it has counted since somebody asked last is lost.
func (c *Collector) WorkerGone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended++
	if q := c.asked; q != nil {
		q.err, c.asked = ErrGone, nil
		close(q.done)
	}
	for k := range c.now {
		if isSum(k) {
			c.before[k] = plus(c.before[k], c.now[k])
		}
	}
	c.now = [ipc.NumFigures]uint64{}
}

// isSum tells whether a figure only grows.
func isSum(k int) bool { return k < ipc.FirstGauge || k >= ipc.FirstHistogram }

// plus does not wrap: there are workers that say they have counted that far.
func plus(a, b uint64) uint64 {
	if a+b < a {
		return 1<<64 - 1
	}
	return a + b
}

// Take takes a message of the worker's, which is of this kind. An error, which is
// ipc.ErrMalformed, is the worker's end.
func (c *Collector) Take(kind ipc.Kind, msg []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.asked
	if q == nil {
		return fmt.Errorf("%w: figures that nobody has asked for", ipc.ErrMalformed)
	}
	switch kind {
	case ipc.KindFlow:
		return q.takeFlows(msg)
	case ipc.KindFigures:
		return q.takeFigures(msg)
	case ipc.KindAnswered:
		var a ipc.Answered
		if err := a.Decode(msg); err != nil {
			return err
		}
		// Whoever follows an honest cursor comes to an end: each answer is of as many
		// records as were asked for, or has looked at more places than that.
		if a.ID != q.ID || a.Next != 0 && a.Next < q.Cursor+uint32(q.Max) {
			return fmt.Errorf("%w: answer to %d after %d, going on at %d after %d", ipc.ErrMalformed, a.ID, q.ID, a.Next, q.Cursor)
		}
		q.next, c.asked = a.Next, nil
		close(q.done)
		return nil
	}
	return fmt.Errorf("%w: kind %#x is none of figures", ipc.ErrMalformed, uint16(kind))
}

func (q *question) takeFlows(msg []byte) error {
	for ; len(msg) > 0; msg = msg[ipc.FlowSize:] {
		var f ipc.Flow
		if err := f.Decode(msg[:min(ipc.FlowSize, len(msg))]); err != nil {
			return err
		}
		if q.What != ipc.AskFlows || f.ID != q.ID || len(q.flows) == int(q.Max) {
			return fmt.Errorf("%w: a flow that was not asked for", ipc.ErrMalformed)
		}
		q.flows = append(q.flows, f)
	}
	return nil
}

func (q *question) takeFigures(msg []byte) error {
	for ; len(msg) > 0; msg = msg[ipc.FiguresSize:] {
		var f ipc.Figures
		if err := f.Decode(msg[:min(ipc.FiguresSize, len(msg))]); err != nil {
			return err
		}
		if q.What != ipc.AskFigures || f.ID != q.ID || len(q.figures) == int(q.Max) {
			return fmt.Errorf("%w: figures that were not asked for", ipc.ErrMalformed)
		}
		q.figures = append(q.figures, f)
	}
	return nil
}

// ask asks the worker, and returns the question with its answer. life says which worker
// it has to be, counted by their ends; negative: any.
func (c *Collector) ask(ctx context.Context, what uint8, cursor uint32, life int) (*question, int, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, 0, ErrSilent
	}
	if err := c.awaitLast(ctx); err != nil {
		return nil, 0, err
	}
	q, now, err := c.send(what, cursor, life)
	if err != nil {
		return nil, 0, err
	}
	if err := c.await(ctx, q); err != nil {
		return nil, 0, err
	}
	return q, now, q.err
}

// send asks the worker, unless that has ended meanwhile.
func (c *Collector) send(what uint8, cursor uint32, life int) (*question, int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if life >= 0 && life != c.ended {
		return nil, 0, ErrGone
	}
	c.lastID++
	q := &question{
		Ask:   ipc.Ask{ID: c.lastID, What: what, Cursor: cursor, Max: ipc.MaxFigures},
		since: time.Now(), done: make(chan struct{}),
	}
	var rec [ipc.AskSize]byte
	q.Encode(rec[:])
	if err := c.worker.SendNow(rec[:]); err != nil {
		return nil, 0, ErrNoWorker
	}
	c.asked = q
	return q, c.ended, nil
}

// awaitLast waits for the answer to a question whose client has given up: a second one
// beside it is not asked.
func (c *Collector) awaitLast(ctx context.Context) error {
	c.mu.Lock()
	q := c.asked
	c.mu.Unlock()
	if q == nil {
		return nil
	}
	return c.await(ctx, q)
}

// await waits until a question is answered.
func (c *Collector) await(ctx context.Context, q *question) error {
	t := time.NewTimer(time.Until(q.since.Add(c.patience)))
	defer t.Stop()
	select {
	case <-q.done:
		return nil
	case <-t.C:
	case <-ctx.Done():
	}
	return ErrSilent
}

// Flows returns the flows that there are, a few at a time. An error is the last.
func (c *Collector) Flows(ctx context.Context) iter.Seq2[[]api.Flow, error] {
	return func(yield func([]api.Flow, error) bool) {
		life := -1
		for cursor := uint32(0); ; {
			q, now, err := c.ask(ctx, ipc.AskFlows, cursor, life)
			if err != nil {
				yield(nil, err)
				return
			}
			flows := make([]api.Flow, len(q.flows))
			for k := range q.flows {
				flows[k] = describe(&q.flows[k])
				flows[k].Rule = c.broker.FlowRule(&q.flows[k])
			}
			if len(flows) > 0 && !yield(flows, nil) {
				return
			}
			if cursor, life = q.next, now; cursor == 0 {
				return
			}
		}
	}
}

// Counters returns all that is counted. Where no worker answers, its part is what was
// known last.
func (c *Collector) Counters(ctx context.Context) api.CountersReply {
	up := c.refresh(ctx) == nil
	c.mu.Lock()
	defer c.mu.Unlock()
	var all [ipc.NumFigures]uint64
	for k := range all {
		all[k] = plus(c.before[k], c.now[k])
	}
	r := named(&all)
	r.Counters = append(c.own(up), r.Counters...)
	return r
}

// refresh has the worker say what it has counted. What only grows cannot have become
// less, whatever it says.
func (c *Collector) refresh(ctx context.Context) error {
	var all []ipc.Figures
	life := -1
	for cursor := uint32(0); ; {
		q, now, err := c.ask(ctx, ipc.AskFigures, cursor, life)
		if err != nil {
			return err
		}
		all = append(all, q.figures...)
		if cursor, life = q.next, now; cursor == 0 || cursor >= uint32(ipc.NumFigures) {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if life != c.ended {
		return ErrGone
	}
	for _, f := range all {
		for i, v := range f.Values[:f.N] {
			k := int(f.First) + i
			if isSum(k) {
				v = max(v, c.now[k])
			}
			c.now[k] = v
		}
	}
	return nil
}
