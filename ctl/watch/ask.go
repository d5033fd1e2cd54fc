// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"aldente/broker/control/api"
)

// Instance is one that can be asked.
type Instance interface {
	// Name is the process number, with more where that is not unique among the instances
	// of a moment. It is fit to be shown.
	Name() string
	// Ask sends a request, and hands over each reply until the end, or until each
	// returns an error. It ends by the context's end.
	Ask(ctx context.Context, req api.Request, each func(*api.Reply) error) error
}

// Lister finds all instances that may be asked, in a fixed order.
type Lister func(ctx context.Context) ([]Instance, error)

// Bounds on what is kept of a sample: more than any instance has.
const (
	maxFlows    = 1 << 18
	maxCounters = 1 << 14
)

// Refusal is what an instance says instead of an answer.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// Look asks an instance for a sample: for one or more of api.Status, api.Flows and
// api.Counters. Only the first has to be answered: an instance of another version may
// not know the others.
func Look(ctx context.Context, in Instance, commands ...string) (*Sample, error) {
	s := &Sample{At: time.Now()}
	for _, c := range commands {
		err := in.Ask(ctx, api.Request{Version: api.Version, Command: c}, s.add)
		if no := Refusal(""); errors.As(err, &no) && c != commands[0] {
			s.Refused = Text(string(no))
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// add takes over what a reply holds, made fit for use.
func (s *Sample) add(r *api.Reply) error {
	if r.Error != "" {
		return Refusal(Text(r.Error))
	}
	(&Sample{Status: r.Status, Flows: r.Flows}).Clean()
	if r.Status != nil {
		s.Status = r.Status
	}
	if s.Flows = append(s.Flows, r.Flows...); len(s.Flows) > maxFlows {
		return fmt.Errorf("more than %d flows", maxFlows)
	}
	if r.Counters != nil {
		if s.Counters == nil {
			s.Counters = &api.CountersReply{}
		}
		s.Counters.Counters = append(s.Counters.Counters, r.Counters.Counters...)
		s.Counters.Histograms = append(s.Counters.Histograms, r.Counters.Histograms...)
		if len(s.Counters.Counters)+len(s.Counters.Histograms) > maxCounters {
			return fmt.Errorf("more than %d counters", maxCounters)
		}
	}
	return nil
}
