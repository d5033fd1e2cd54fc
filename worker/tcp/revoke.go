// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"aldente/ipc"
	"aldente/worker/flow"
)

// RevokeFlow ends the connection whose request for a socket had this token, for both
// sides by a reset: what it was made for is not allowed any more. What the guest is
// sent is in sequence, so that it is believed. One that has no socket yet will get
// none, or be revoked again.
func (t *Translator) RevokeFlow(token uint64) {
	_, gen, i := flow.SplitToken(token)
	if !t.flows.Live(i, gen) {
		return
	}
	c := t.flows.At(i)
	if c.state == stateEnded || c.fd < 0 {
		return
	}
	t.Stats.Revoked++
	t.cut(i, c, ipc.EndRevoked)
}

// cut ends a connection for both sides by a reset.
func (t *Translator) cut(i uint32, c *conn, how ipc.How) {
	c.ends(how)
	t.sendRST(i, c)
	t.abort(i, c)
}

// Gone ends the connections whose sockets have lost their address, as gone tells. The
// guest hears a reset, instead of nothing until it loses patience.
func (t *Translator) Gone(gone func(fd int32) bool) {
	t.flows.Each(func(i uint32) {
		if c := t.flows.At(i); c.state != stateEnded && c.fd >= 0 && gone(c.fd) {
			t.cut(i, c, ipc.EndGone)
		}
	})
}
