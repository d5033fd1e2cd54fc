// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"reflect"
	"strings"

	"aldente/worker/link"
)

// counters are all that a lane counts, as values that can be compared.
type counters struct {
	name string
	now  func() any
}

// statsLog writes what was counted since the last time, for --stats.
type statsLog struct {
	period int64 // nanoseconds
	all    []counters
	last   []any
}

// newStatsLog makes the log of a lane that has its translators.
func newStatsLog(l *Lane, seconds uint32) *statsLog {
	s := &statsLog{period: int64(seconds) * 1e9, all: []counters{
		{"lane", func() any { return l.Stats }},
		{"link", func() any { return l.linkCounters() }},
		{"fragments", func() any { return l.reasm.Stats }},
		{"tcp", func() any { return l.tcp.Stats }},
		{"udp", func() any { return l.udp.Stats }},
		{"icmp", func() any { return l.icmp.Stats }},
		{"bypass", func() any { return l.bypass.Stats }},
	}}
	for _, c := range s.all {
		s.last = append(s.last, c.now())
	}
	return s
}

// linkCounters are those of all links that the lane has had.
func (l *Lane) linkCounters() link.Counters {
	sum := l.linksGone
	if l.link != nil {
		sum.Add(l.link.Counters())
	}
	return sum
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
	if line := l.stats.line(); line != "" {
		logf(levelWarning, "counters %s", line)
	}
	l.wheel.Set(l.timer+timerStats, l.now+l.stats.period)
}
