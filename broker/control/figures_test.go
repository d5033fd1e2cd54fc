// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"iter"
	"testing"

	"aldente/broker/control/api"
)

// counted is an instance with flows, and a worker that ends while they are listed.
type counted struct {
	Instance
	flows []api.Flow
}

func (f counted) Flows(ctx context.Context) iter.Seq2[[]api.Flow, error] {
	return func(yield func([]api.Flow, error) bool) {
		for k := range f.flows {
			if !yield(f.flows[k:k+1], nil) {
				return
			}
		}
		yield(nil, errors.New("the worker has ended meanwhile"))
	}
}

func (f counted) Counters(ctx context.Context) api.CountersReply {
	if _, bounded := ctx.Deadline(); !bounded {
		return api.CountersReply{}
	}
	return api.CountersReply{Counters: []api.Counter{{Name: "worker_up", Value: 1}}}
}

// idle is an instance without a flow.
type idle struct{ Instance }

func (idle) Flows(context.Context) iter.Seq2[[]api.Flow, error] {
	return func(func([]api.Flow, error) bool) {}
}

// TestNoFlowsServed: that there are no flows is an answer, unlike a connection that is
// closed on who may not ask.
func TestNoFlowsServed(t *testing.T) {
	shows, _, _ := both(t, idle{}, nil)
	r := ask(t, shows, `{"version":1,"command":"flows"}`+"\n")
	if len(r) != 1 || r[0].Error != "" || len(r[0].Flows) != 0 {
		t.Errorf("flows: %+v", r)
	}
}

// TestFiguresServed: flows come in as many replies as there are answers of the worker's,
// an error is the last; counters come in one.
func TestFiguresServed(t *testing.T) {
	shows, _, _ := both(t, counted{flows: []api.Flow{{Guest: "one"}, {Guest: "two"}}}, nil)
	r := ask(t, shows, `{"version":1,"command":"flows"}`+"\n")
	if len(r) != 3 || len(r[0].Flows) != 1 || r[1].Flows[0].Guest != "two" || r[2].Error != "the worker has ended meanwhile" {
		t.Errorf("flows: %+v", r)
	}
	r = ask(t, shows, `{"version":1,"command":"counters"}`+"\n")
	if len(r) != 1 || r[0].Counters == nil || len(r[0].Counters.Counters) != 1 {
		t.Errorf("counters: %+v", r)
	}
}
