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

// Counters are those of the worker, and our own.
func (l *liveStatus) Counters(ctx context.Context) api.CountersReply { return l.figures.Counters(ctx) }
