// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"aldente/broker/control/api"
	"aldente/broker/sockets"
	"aldente/ipc"
	"aldente/ipc/domain"
)

// mostExplained are the addresses of one name that are explained.
const mostExplained = 8

// whyName tells what would become of the guest's next flow to a name: what the rules
// say of it, and of each address that stands for it. Without a rule by name, there are
// no steps: the broker does not know where names lead.
func (e explained) whyName(t *api.Target) ([]api.Step, error) {
	if e.in.plan.Egress == nil || !e.in.plan.Egress.ByName() {
		return nil, nil
	}
	name, err := domain.Parse(t.Name)
	if err != nil {
		return nil, fmt.Errorf("%.300q is no name: %w", t.Name, err)
	}
	proto, ok := map[string]uint8{"tcp": ipc.ProtoTCP, "udp": ipc.ProtoUDP, "icmp": ipc.ProtoICMP}[t.Protocol]
	switch {
	case !ok:
		return nil, fmt.Errorf("%.20q is none of tcp, udp and icmp", t.Protocol)
	case proto == ipc.ProtoICMP && t.Port != 0:
		return nil, errPorts
	}
	w := e.in.plan.Egress.ExplainName(name, proto, t.Port)
	to := string(name)
	if t.Port != 0 {
		to = fmt.Sprintf("%s:%d", name, t.Port)
	}
	steps := []api.Step{{What: "packet", Result: fmt.Sprintf("%s from the guest to %s", t.Protocol, to)}}
	step := func(what, format string, args ...any) {
		steps = append(steps, api.Step{What: what, Result: fmt.Sprintf(format, args...)})
	}
	decided := func(allow bool, format string, args ...any) []api.Step {
		return append(steps, api.Step{What: "verdict", Result: fmt.Sprintf(format, args...), Final: true, Allow: allow})
	}
	by := "no rule by name fits, and what stands behind them decides"
	if w.Resolves != "" {
		by = w.Resolves
	}
	if !w.Name.Allowed {
		step("name", "is not resolved (%s)", by)
		return decided(false, "refused: the guest's question for %s is answered \"refused\", and nobody else is asked", name), nil
	}
	step("name", "is resolved (%s)", by)
	for i := range w.Stands[:min(len(w.Stands), mostExplained)] {
		a := w.Stands[i]
		one, err := e.Why(&api.Target{Protocol: t.Protocol, Address: a.String(), Port: t.Port})
		if err != nil {
			return nil, err
		}
		last := i == len(w.Stands)-1 || i == mostExplained-1
		for k, s := range one {
			if k == 0 {
				s = api.Step{What: "leads to", Result: a.String()}
			}
			s.Final = s.Final && last
			steps = append(steps, s)
		}
	}
	if len(w.Stands) > 0 {
		return steps, nil
	}
	before := len(e.in.factory.Rules()) - len(e.in.plan.Egress.List())
	for i := range w.Asked {
		step(fmt.Sprintf("rule %d", before+w.Asked[i].Index+1), "%s: %s", w.Asked[i].Text, w.Asked[i].Result)
	}
	if !w.Verdict.Allowed {
		return decided(false, "refused by \"%s\", whatever the address", w.Verdict.Rule), nil
	}
	if w.Verdict.ByName && proto != ipc.ProtoICMP && e.in.factory.LooksAt(t.Port) {
		step("hello", "%s", sockets.HelloText)
	}
	return decided(true, "allowed, once the guest has asked its resolver: no address of %s stands now", name), nil
}
