// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"aldente/broker/control/api"
	"aldente/broker/rulesfile"
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

func answerLoad(_ context.Context, in Instance, r *api.Request, c *Client) error {
	switch {
	case r.Load == nil || r.Load.Text == "":
		return errors.New("no rules are given")
	case r.Load.Keep && r.Load.End:
		return errors.New("flows cannot both go on and end")
	case len(r.Load.Name) > maxName:
		return fmt.Errorf("the name of a file of more than %d bytes", maxName)
	case strings.ContainsFunc(r.Load.Name, func(c rune) bool { return !unicode.IsPrint(c) }):
		return errors.New("the name of a file that cannot be shown")
	}
	loaded, err := in.Load(r.Load)
	if err != nil {
		return err
	}
	return c.Reply(&api.Reply{Load: loaded})
}

// maxName bounds the name of a file, which every message about it repeats.
const maxName = 4096

// refusal is the reply for an error. One of rules says each thing in its own line.
func refusal(err error) *api.Reply {
	var errs rulesfile.Errors
	if !errors.As(err, &errs) {
		return &api.Reply{Error: err.Error()}
	}
	r := &api.Reply{Error: "the rules stay as they are"}
	for _, e := range errs {
		r.Problems = append(r.Problems, e.Error())
	}
	return r
}
