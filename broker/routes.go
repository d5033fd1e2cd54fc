// SPDX-License-Identifier: Apache-2.0

package main

import (
	"aldente/broker/follow"
	"aldente/ipc"
)

// watchRoutes begins to listen for what what the egress rules say depends on,
// before the first flow is opened.
func (in *instance) watchRoutes() {
	if p := in.plan.Egress; p == nil || !p.Varies() {
		return
	}
	var err error
	if in.routes, err = follow.New(); err != nil {
		in.log.Warn("routes cannot be watched: open flows outlive a change of the host's addresses", "error", err)
		return
	}
	in.factory.Follow()
}

// followRoutes has flows end that the egress rules have allowed and refuses since
// the host's addresses or routes have changed. It returns at once.
func (in *instance) followRoutes() {
	if in.routes == nil {
		return
	}
	revoke := func(r *ipc.Revoke) error {
		var b [ipc.RevokeSize]byte
		r.Encode(b[:])
		return in.worker.Send(b[:], -1)
	}
	go in.routes.Run(func() (again bool) {
		left, defied := in.factory.Recheck(revoke)
		if defied {
			in.log.Error("the worker keeps flows that the egress rules refuse: it is replaced")
			in.worker.Kill()
		}
		return left > 0
	})
}
