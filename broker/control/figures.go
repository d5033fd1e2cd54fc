// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"

	"aldente/broker/control/api"
)

func answerFlows(ctx context.Context, in Instance, _ *api.Request, c *Client) error {
	for flows, err := range in.Flows(ctx) {
		if err == nil {
			err = c.Reply(&api.Reply{Flows: flows})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func answerCounters(ctx context.Context, in Instance, _ *api.Request, c *Client) error {
	r := in.Counters(ctx)
	return c.Reply(&api.Reply{Counters: &r})
}
