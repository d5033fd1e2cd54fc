// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Rebind has listeners that are bound to an interface by name follow it: where it has gone
// and come again, they are bound anew. Those whose interface is not there wait for the
// next call, and the log is told once. One whose interface has another name now, with none
// in its place, goes on with it.
func (f *Forwarder) Rebind() {
	f.mu.Lock()
	defer f.mu.Unlock()
	missing := map[string]error{} // interfaces that are not there: of many ports one asks
	gone, back := map[string]int{}, map[string]int{}
	for _, l := range f.factory.Listeners() {
		name, strayed := f.factory.Strayed(&l)
		if !strayed {
			delete(f.away, l.ID)
			continue
		}
		now, err := l, missing[l.Interface]
		if err == nil {
			if now, err = f.factory.Rebind(l); errors.Is(err, unix.ENODEV) {
				missing[l.Interface] = err
			}
		}
		if err != nil {
			if name == "" && !f.away[l.ID] {
				f.away[l.ID] = true
				gone[l.Interface]++
			}
			continue
		}
		if f.away[l.ID] {
			delete(f.away, l.ID)
			back[l.Interface]++
		}
		if f.up && !now.Guarded {
			rec := now.Record()
			_ = f.worker.Send(rec.Encode(ipc.KindUnlisten), -1)
			_ = f.worker.Send(rec.Encode(ipc.KindListener), now.FD) // without a worker, the next one is told
		}
	}
	for name, n := range gone {
		f.log.Warn("ports are not forwarded until their interface is there again", "interface", name, "ports", n)
	}
	for name, n := range back {
		f.log.Info("ports are forwarded again", "interface", name, "ports", n)
	}
}
