// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
)

// answerCapture begins a capture, which goes on until the client says no more. The
// client reads it by a pipe of its own.
func answerCapture(ctx context.Context, in Instance, r *api.Request, c *Client) error {
	pipe, end, err := in.Capture(cmp.Or(r.Capture, &api.CaptureSpec{}))
	if err != nil {
		return err
	}
	defer end()
	err = c.ReplyWith(&api.Reply{}, pipe)
	unix.Close(pipe)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
