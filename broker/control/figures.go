// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"

	"aldente/broker/control/api"
)

func answerFlows(ctx context.Context, in Instance, _ *api.Request, c *Client) error {
	told := false
	for flows, err := range in.Flows(ctx) {
		if err == nil {
			err = c.Reply(&api.Reply{Flows: flows})
		}
		if err != nil {
			return err
		}
		told = true
	}
	if told {
		return nil
	}
	// An end without a reply is for those who may not ask.
	return c.Reply(&api.Reply{})
}

func answerCounters(ctx context.Context, in Instance, _ *api.Request, c *Client) error {
	r := in.Counters(ctx)
	return c.Reply(&api.Reply{Counters: &r})
}
