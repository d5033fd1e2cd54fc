// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"io"
	"reflect"
	"syscall"

	"aldente/ipc"
	"aldente/worker/link"
)

// Bounds on an answer. It is one turn's, and so traffic hardly notices who asks.
const (
	placesPerAnswer = 1024       // places for flows that are looked at
	answerRetry     = 10_000_000 // nanoseconds, where the channel is full
)

// requestSlots is how many requests for sockets are timed at a time, a power of two.
// Of two whose tokens end alike, the later one is.
const requestSlots = 512

// histogram is how often something took how long.
type histogram struct {
	buckets [ipc.Buckets]uint64
	sum     uint64 // nanoseconds
}

func (h *histogram) note(ns int64) {
	h.buckets[ipc.Bucket(ns)]++
	h.sum += uint64(max(ns, 0))
}

// figures are what the broker may ask for, and the answer that is owed to it. While
// nobody asks, only the histograms cost something.
type figures struct {
	histograms [ipc.NumHistograms]histogram
	woke       int64 // when the turn's work began; zero: there was none yet
	requests   [requestSlots]struct {
		token uint64
		at    int64
	}

	values []*uint64 // counters, in the order of their numbers
	links  link.Counters
	gauges []func() int
	walks  []walk

	asked ipc.Ask
	owed  bool
	made  bool   // the answer, of which what is left is:
	body  []byte // records
	end   [ipc.AnsweredSize]byte

	flow ipc.Flow
	some ipc.Figures
	out  [ipc.MaxFigures * max(ipc.FlowSize, ipc.FiguresSize)]byte
}

// walk is one table of flows.
type walk struct {
	places   func() uint32                         // that are or were in use
	size     uint32                                // as many as there can be
	describe func(i uint32, f *ipc.Flow) (ok bool) // what one holds
}

// newFigures prepares for questions, once the lane has its translators.
func (l *Lane) newFigures(nTCP, nUDP, nICMP, nBypass, nBypassUDP int) {
	f := &l.figures
	for _, c := range l.counters() {
		s := reflect.ValueOf(c.at).Elem()
		for i := range s.NumField() {
			f.values = append(f.values, s.Field(i).Addr().Interface().(*uint64))
		}
	}
	f.gauges = []func() int{
		ipc.GaugeTCP: l.tcp.Len, ipc.GaugeUDP: l.udp.Len, ipc.GaugeEcho: l.icmp.Len,
		ipc.GaugeBypassTCP: l.bypass.Len, ipc.GaugeBypassUDP: l.bypass.LenUDP,
	}
	f.walks = []walk{
		{l.tcp.Places, uint32(nTCP), l.tcp.Describe},
		{l.udp.Places, uint32(nUDP), l.udp.Describe},
		{l.icmp.Places, uint32(nICMP), l.icmp.Describe},
		{l.bypass.Places, uint32(nBypass), l.bypass.Describe},
		{l.bypass.PlacesUDP, uint32(nBypassUDP), l.bypass.DescribeUDP},
	}
}

// turnEnds notes how long a turn took without its wait: it has ended by now.
func (f *figures) turnEnds(now int64) {
	if f.woke != 0 {
		f.histograms[ipc.HistogramTurn].note(now - f.woke)
	}
}

// requested notes when a socket was asked for, answered when the answer came.
func (f *figures) requested(token uint64, now int64) {
	s := &f.requests[token%requestSlots]
	s.token, s.at = token, now
}

func (f *figures) answered(token uint64, now int64) {
	if s := &f.requests[token%requestSlots]; s.token == token && s.at != 0 {
		f.histograms[ipc.HistogramAnswer].note(now - s.at)
		s.at = 0
	}
}

// ask takes a question of the broker's. The turn ends with the answer.
func (l *Lane) ask(rec []byte) error {
	f := &l.figures
	if f.owed {
		return fmt.Errorf("%w: a question before the last was answered", ipc.ErrMalformed)
	}
	if err := f.asked.Decode(rec); err != nil {
		return err
	}
	f.owed, f.made = true, false
	return nil
}

// answerAsked answers it, as soon as the channel takes that.
func (l *Lane) answerAsked() {
	f := &l.figures
	if !f.made {
		n, next := 0, uint32(0)
		if f.asked.What == ipc.AskFlows {
			n, next = l.listFlows()
		} else {
			n, next = l.listFigures()
		}
		(&ipc.Answered{ID: f.asked.ID, Next: next}).Encode(f.end[:])
		f.body, f.made = f.out[:n], true
	}
	e := syscall.Errno(0)
	if len(f.body) > 0 {
		if e = l.channel.send(f.body); e == 0 {
			f.body = nil
		}
	}
	if e == 0 {
		e = l.channel.send(f.end[:])
	}
	switch e {
	case 0:
		f.owed = false
	case syscall.EAGAIN:
		l.wheel.Set(l.timer+timerAnswer, l.now+answerRetry)
	default:
		if l.err == nil {
			l.err = io.EOF
		}
	}
}

// listFlows writes records of flows to out, from the place on that was asked for. All
// tables count as one, each behind the one before. It returns how many bytes it has
// written, and where to go on, zero if nowhere.
func (l *Lane) listFlows() (n int, next uint32) {
	f := &l.figures
	at, first := f.asked.Cursor, uint32(0)
	most, looked := int(f.asked.Max)*ipc.FlowSize, 0
	for _, w := range f.walks {
		for i := max(at, first) - first; i < w.places(); i++ {
			if n == most || looked == placesPerAnswer {
				return n, first + i
			}
			looked++
			if w.describe(i, &f.flow) {
				f.flow.ID = f.asked.ID
				f.flow.Encode(f.out[n:])
				n += ipc.FlowSize
			}
		}
		first += w.size
	}
	return n, 0
}

// listFigures does the same for figures.
func (l *Lane) listFigures() (n int, next uint32) {
	f := &l.figures
	l.sumLinks()
	at := int(f.asked.Cursor)
	for range f.asked.Max {
		if at >= ipc.NumFigures {
			return n, 0
		}
		f.some = ipc.Figures{ID: f.asked.ID, First: uint16(at), N: uint8(min(ipc.FigureValues, ipc.NumFigures-at))}
		for k := range int(f.some.N) {
			f.some.Values[k] = f.value(at + k)
		}
		f.some.Encode(f.out[n:])
		n += ipc.FiguresSize
		at += int(f.some.N)
	}
	if at >= ipc.NumFigures {
		at = 0
	}
	return n, uint32(at)
}

// value is the figure with this number.
func (f *figures) value(k int) uint64 {
	if k < ipc.FirstGauge {
		return *f.values[k]
	}
	if k -= ipc.FirstGauge; k < ipc.NumGauges {
		return uint64(f.gauges[k]())
	}
	k -= ipc.NumGauges
	h := &f.histograms[k/ipc.HistogramSize]
	if k %= ipc.HistogramSize; k < ipc.Buckets {
		return h.buckets[k]
	}
	return h.sum
}
