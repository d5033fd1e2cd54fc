// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"aldente/broker/foreign"
	"aldente/ipc"
	"aldente/policy"
)

// confine is the last step of a set-up: the agent gives up all that opening
// sockets in the namespace does not take, and reports what is in force. It may
// open no file after that, and no capability is left to it but that of binding
// low ports, where forwarding needs it, and that of changing the guest's network, where
// it follows the host's.
func (s *server) confine() error {
	if s.setup.Flags&ipc.AgentSetupConfine == 0 {
		return nil
	}
	c := policy.Confinement{Filter: policy.FilterAgent, EmptyRoot: true}
	if s.setup.Flags&ipc.AgentSetupBind != 0 {
		c.Capabilities |= policy.BindLowPorts
	}
	if s.follower != nil {
		c.Capabilities |= policy.NetAdmin
	}
	s.confined = true
	for _, l := range lockDown(&c) {
		r := ipc.AgentLayer{ID: s.setup.ID, State: uint8(l.State)}
		r.Name, _ = ipc.MakeName(l.Name[:min(len(l.Name), ipc.MaxDomain)])
		r.Detail, _ = ipc.MakeName(l.Detail[:min(len(l.Detail), ipc.MaxDomain)])
		if err := ipc.Send(s.channel, r.Encode(), -1); err != nil {
			return err
		}
	}
	return nil
}

// Confine has the agent confine itself at the end of the next set-up. With bind
// it keeps the right to bind low ports of the namespace.
func (c *Client) Confine(bind bool) {
	c.flags |= ipc.AgentSetupConfine
	if bind {
		c.flags |= ipc.AgentSetupBind
	}
}

// Layers returns what the agent has reported of its confinement.
func (c *Client) Layers() policy.Report { return c.layers }

// maxLayers bounds what an agent that was taken over can make us keep.
const maxLayers = 32

// takeLayer notes one layer.
func (c *Client) takeLayer(b []byte) error {
	var r ipc.AgentLayer
	if err := r.Decode(b); err != nil {
		return err
	}
	if r.ID != c.id || len(c.layers) == maxLayers {
		return ipc.ErrMalformed
	}
	c.layers.Add(policy.Layer{Name: foreign.Line(r.Name.String()), State: policy.State(r.State), Detail: foreign.Line(r.Detail.String())})
	return nil
}
