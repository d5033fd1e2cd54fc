// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"

	"aldente/broker/control/api"
)

func answerRules(_ context.Context, in Instance, _ *api.Request, c *Client) error {
	return c.Reply(&api.Reply{Rules: in.Rules()})
}

func answerWhy(_ context.Context, in Instance, r *api.Request, c *Client) error {
	steps, err := in.Why(r.Target)
	if err != nil {
		return err
	}
	return c.Reply(&api.Reply{Why: steps})
}

func answerForwards(_ context.Context, in Instance, _ *api.Request, c *Client) error {
	return c.Reply(&api.Reply{Forwards: in.Forwards()})
}

func answerForward(_ context.Context, in Instance, r *api.Request, c *Client) error {
	if err := in.Forward(r.Forward); err != nil {
		return err
	}
	return c.Reply(&api.Reply{})
}
