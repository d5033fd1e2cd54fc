// SPDX-License-Identifier: Apache-2.0

package forward

import "aldente/ipc"

// Rebind has listeners that are bound to an interface by name follow it: where it has gone
// and come again, they are bound anew. Those whose interface is not there wait for the
// next call, and the log is told once of each. One whose interface has another name now,
// with none in its place, goes on with it.
func (f *Forwarder) Rebind() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.factory.Listeners() {
		name, strayed := f.factory.Strayed(&l)
		if !strayed {
			delete(f.away, l.ID)
			continue
		}
		now, err := f.factory.Rebind(l)
		if err != nil {
			if name == "" && !f.away[l.ID] {
				f.away[l.ID] = true
				f.log.Warn("a port is not forwarded until its interface is there again", "port", l.Port, "interface", l.Interface, "error", err)
			}
			continue
		}
		if f.away[l.ID] {
			delete(f.away, l.ID)
			f.log.Info("a port is forwarded again", "port", l.Port, "interface", l.Interface)
		}
		if f.up && !now.Guarded {
			rec := now.Record()
			_ = f.worker.Send(rec.Encode(ipc.KindUnlisten), -1)
			_ = f.worker.Send(rec.Encode(ipc.KindListener), now.FD) // without a worker, the next one is told
		}
	}
}
