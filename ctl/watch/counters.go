// SPDX-License-Identifier: Apache-2.0

package watch

import "strings"

// Names of counters that top sums up. An instance of a version that lacks them shows
// less.
const (
	linkBytes     = "link_bytes_total"
	directionUp   = "from_guest"
	directionDown = "to_guest"
	rulesRefused  = "egress_refused_total"
)

// drops are what counts what was not passed on.
var drops = []string{"dropped_packets_total", "link_dropped_frames_total"}

// sum is the sum of all counters of a name, whose label has a value if one is given.
func (s *Sample) sum(name, label, value string) (total float64, found bool) {
	if s == nil || s.Counters == nil {
		return 0, false
	}
	for i := range s.Counters.Counters {
		if c := &s.Counters.Counters[i]; c.Name == name && (label == "" || c.Labels[label] == value) {
			total, found = total+c.Value, true
		}
	}
	return total, found
}

// grown is how much a sum has grown per second.
func grown(before, now *Sample, name, label, value string) (rate float64, known bool) {
	old, was := before.sum(name, label, value)
	v, is := now.sum(name, label, value)
	passed := now.At.Sub(before.At).Seconds()
	if !was || !is || passed <= 0 {
		return 0, false
	}
	return max(v-old, 0) / passed, true
}

// Traffic is what moved between two samples, in bytes per second: on the link as the
// instance has counted it, headers and flows that have ended included, and past the
// link by the flows that there are. Without counters it is the flows' sum.
func Traffic(before, now *Sample, rows []Row) (sent, received float64) {
	up, ok := grown(before, now, linkBytes, "direction", directionUp)
	down, ok2 := grown(before, now, linkBytes, "direction", directionDown)
	counted := ok && ok2
	if counted {
		sent, received = up, down
	}
	for i := range rows {
		if r := &rows[i]; !counted || strings.HasPrefix(r.Direction, "bypass-") {
			sent, received = sent+r.SentRate, received+r.ReceivedRate
		}
	}
	return sent, received
}

// Drops is how much was not passed on between two samples, per second.
func Drops(before, now *Sample) (rate float64) {
	for _, name := range drops {
		r, _ := grown(before, now, name, "", "")
		rate += r
	}
	return rate
}

// Dropped is what was not passed on since the start.
func Dropped(s *Sample) (total float64) {
	for _, name := range drops {
		n, _ := s.sum(name, "", "")
		total += n
	}
	return total
}

// Refused is how often the egress rules have refused something since the start.
func Refused(s *Sample) float64 {
	n, _ := s.sum(rulesRefused, "", "")
	return n
}
