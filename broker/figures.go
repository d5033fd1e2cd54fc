// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"iter"

	"aldente/broker/control/api"
)

// Flows are those that the worker has.
func (l *liveStatus) Flows(ctx context.Context) iter.Seq2[[]api.Flow, error] {
	return l.figures.Flows(ctx)
}

// Counters are those of the worker, our own, and those of names, where there is one, and of
// what it looks at, and of the proxy.
func (l *liveStatus) Counters(ctx context.Context) api.CountersReply {
	r := l.figures.Counters(ctx)
	if l.names != nil {
		r.Counters = append(r.Counters, l.names.Counters()...)
	}
	r.Counters = append(r.Counters, l.factory.HelloCounters()...)
	r.Counters = append(r.Counters, l.factory.ProxyCounters()...)
	return r
}
