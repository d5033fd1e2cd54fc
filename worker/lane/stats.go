// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"reflect"
	"strings"
)

// counters are what a part of the lane counts.
type counters struct {
	name string
	at   any // points to them
}

// now returns them as a value that can be compared.
func (c *counters) now() any { return reflect.ValueOf(c.at).Elem().Interface() }

// counters are all that a lane counts, once it has its translators: in the order of
// ipc.Counters.
func (l *Lane) counters() []counters {
	return []counters{
		{"lane", &l.Stats}, {"link", &l.figures.links}, {"fragments", &l.reasm.Stats},
		{"tcp", &l.tcp.Stats}, {"udp", &l.udp.Stats}, {"icmp", &l.icmp.Stats}, {"bypass", &l.bypass.Stats},
	}
}

// statsLog writes what was counted since the last time, for --stats.
type statsLog struct {
	period int64 // nanoseconds
	all    []counters
	last   []any
}

// newStatsLog makes the log of a lane that has its translators.
func newStatsLog(l *Lane, seconds uint32) *statsLog {
	s := &statsLog{period: int64(seconds) * 1e9, all: l.counters()}
	l.sumLinks()
	for _, c := range s.all {
		s.last = append(s.last, c.now())
	}
	return s
}

// sumLinks brings the counters of all links that the lane has had up to date.
func (l *Lane) sumLinks() {
	sum := &l.figures.links
	*sum = l.linksGone
	if l.link != nil {
		sum.Add(l.link.Counters())
	}
}

// line returns what has changed since the last call, "" if nothing has: each
// counter by the name it has in the code, with its growth.
func (s *statsLog) line() string {
	var b strings.Builder
	for k, c := range s.all {
		now := c.now()
		if now == s.last[k] {
			continue
		}
		was, is := reflect.ValueOf(s.last[k]), reflect.ValueOf(now)
		for i := range is.NumField() {
			if d := is.Field(i).Uint() - was.Field(i).Uint(); d != 0 {
				fmt.Fprintf(&b, " %s.%s=%d", c.name, is.Type().Field(i).Name, d)
			}
		}
		s.last[k] = now
	}
	return strings.TrimPrefix(b.String(), " ")
}

// tellStats writes the line that is due, and plans the next. It is shown whatever
// else is not: somebody has asked for it.
func (l *Lane) tellStats() {
	l.sumLinks()
	if line := l.stats.line(); line != "" {
		logf(levelWarning, "counters %s", line)
	}
	l.wheel.Set(l.timer+timerStats, l.now+l.stats.period)
}
