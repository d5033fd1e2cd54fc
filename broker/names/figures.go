// SPDX-License-Identifier: Apache-2.0

package names

import "aldente/broker/control/api"

// Counters are what processes have said that they have counted.
func (s *Server) Counters() (all []api.Counter) {
	c := s.Counted()
	for _, e := range []struct {
		event string
		n     uint64
	}{{"question", c.Questions}, {"refused", c.Refused}, {"cached", c.Cached}, {"asked", c.Asked}, {"failed", c.Failed}, {"forged", c.Forged}} {
		all = append(all, api.Counter{
			Name: "names_events_total", Value: float64(e.n), Labels: map[string]string{"event": e.event},
			Help: "What has happened to the guest's questions for names: asked, refused by a rule, answered from the cache, asked of resolvers, without answer; datagrams that were none.",
		})
	}
	return all
}
