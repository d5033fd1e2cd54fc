// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"aldente/broker/follow"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// watchRoutes begins to listen for what what the egress rules say depends on,
// before the first flow is opened. Where they may be changed, they may come to depend
// on it.
func (in *instance) watchRoutes() {
	p := in.plan.Egress
	if p == nil {
		return
	}
	if in.cfg.Reloads() && !in.factory.FollowAll() {
		in.log.Warn("open flows cannot be followed: those that new egress rules refuse go on until they end")
	}
	if !p.Varies() && !in.cfg.Reloads() {
		return
	}
	var err error
	if in.routes, err = follow.New(); err != nil {
		in.log.Warn("routes cannot be watched: open flows outlive a change of the host's addresses", "error", err)
		return
	}
	if !in.cfg.Reloads() {
		in.factory.Follow()
	}
}

// followRoutes has flows end that the egress rules have allowed and refuses since
// the host's addresses or routes have changed. It returns at once.
func (in *instance) followRoutes() {
	if in.routes == nil {
		return
	}
	go in.routes.Run(func() (again bool) {
		if in.names != nil {
			in.names.Forget()
		}
		return in.plan.Egress.Varies() && in.recheck() > 0
	})
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
