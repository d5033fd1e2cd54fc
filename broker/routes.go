// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"aldente/broker/sockets"
	"aldente/ipc"
)

// rememberFlows has the factory remember what may end when the egress rules, or what they
// depend on, change: before the first flow is opened.
func (in *instance) rememberFlows() {
	p := in.plan.Egress
	if p == nil {
		return
	}
	if in.cfg.Reloads() && !in.factory.FollowAll() {
		in.log.Warn("open flows cannot be followed: those that new egress rules refuse go on until they end")
	}
	if p.Varies() && in.net.watcher != nil && !in.cfg.Reloads() {
		in.factory.Follow()
	}
}

// recheck has flows end that the egress rules refuse now, and returns how many are
// left that have to.
func (in *instance) recheck() (left int) {
	send := func(size int, encode func([]byte)) error {
		b := make([]byte, size)
		encode(b)
		return in.worker.Send(b, -1)
	}
	left, defied := in.factory.Recheck(sockets.Revoker{
		Peers: func(r *ipc.Revoke) error { return send(ipc.RevokeSize, r.Encode) },
		Flows: func(r *ipc.RevokeFlows) error { return send(ipc.RevokeFlowsSize, r.Encode) },
	})
	if defied {
		in.log.Error("the worker keeps flows that the egress rules refuse: it is replaced")
		in.worker.Kill()
		if in.factory.Stages().Bound > 0 { // which has had sockets of flows as well
			in.log.Error("names may have kept them: it is replaced, too")
			in.asking.Kill()
		}
	}
	return left
}

// recheckPause is how long a worker may take to end flows until it is looked again.
const recheckPause = 100 * time.Millisecond

// recheckAll is recheck, and goes on in the background as long as any are left.
func (in *instance) recheckAll() (left int) {
	left = in.recheck()
	if left > 0 && in.rechecking.TryLock() {
		go func() {
			defer in.rechecking.Unlock()
			for {
				time.Sleep(recheckPause)
				if in.recheck() == 0 {
					return
				}
			}
		}()
	}
	return left
}
