// SPDX-License-Identifier: Apache-2.0

package forward

import "aldente/broker/cli"

// State is a rule in force, and how it fares.
type State struct {
	cli.Rule
	Outbound bool   // of -T or -U
	Listens  int    // ports that are had; with "auto", those of which the target is bound
	Dropped  uint64 // connections refused there for who has made them; packets dropped for that, or for want of room
}

// States returns the rules in force, inbound ones first, as Rules does.
func (f *Forwarder) States() (all []State) {
	f.change.Lock()
	defer f.change.Unlock()
	ports := f.listening()
	for d, rules := range f.rules {
		for _, r := range rules {
			had, dropped := map[uint16]bool{}, uint64(0) // one port may take a listener for each family
			for _, id := range r.listeners() {
				if p, ok := ports[id]; ok {
					had[p] = true
					dropped += f.factory.Dropped(id)
				}
			}
			all = append(all, State{Rule: r.Rule, Outbound: direction(d) == outbound, Listens: len(had), Dropped: dropped})
		}
	}
	return all
}

// listening are the ports of listeners that hear, by identifier.
func (f *Forwarder) listening() map[uint32]uint16 {
	f.mu.Lock()
	defer f.mu.Unlock()
	ports := map[uint32]uint16{}
	for _, l := range f.factory.Listeners() {
		if !f.lost[l.ID] && !f.away[l.ID] {
			ports[l.ID] = l.Port
		}
	}
	return ports
}
