// SPDX-License-Identifier: Apache-2.0

package watch

// Names of counters that top sums up. An instance of a version that lacks them shows
// less.
const (
	counterBytes   = "traffic_bytes_total"
	counterDrops   = "drops_total"
	counterRefused = "refused_flows_total"
)

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

// Traffic is what moved between two samples, in bytes per second: as counted by the
// instance, or else the sum over its flows, in which those are missing that have
// ended.
func Traffic(before, now *Sample, rows []Row) (sent, received float64) {
	sent, ok := grown(before, now, counterBytes, "direction", "sent")
	received, ok2 := grown(before, now, counterBytes, "direction", "received")
	if ok && ok2 {
		return sent, received
	}
	return Sum(rows)
}

// Drops is how much was not passed on between two samples, per second.
func Drops(before, now *Sample) float64 {
	rate, _ := grown(before, now, counterDrops, "", "")
	return rate
}

// Dropped is what was not passed on since the start.
func Dropped(s *Sample) float64 {
	n, _ := s.sum(counterDrops, "", "")
	return n
}

// Refused is how many flows were refused since the start.
func Refused(s *Sample) float64 {
	n, _ := s.sum(counterRefused, "", "")
	return n
}
