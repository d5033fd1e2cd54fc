// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"net/netip"
	"syscall"

	"aldente/ipc"
	"aldente/names/proxy"
)

// SetProxy says which proxy flows go by. It has to be called before there is one.
func (f *Flows) SetProxy(p *ipc.Proxy) {
	f.proxy = &proxy.Config{What: p.What, User: append([]byte(nil), p.User[:p.UserLen]...), Secret: append([]byte(nil), p.Secret[:p.SecretLen]...)}
}

// Relay has the proxy asked for a destination, by a socket that is ours from then on.
func (f *Flows) Relay(r *ipc.Relay, fd int) {
	_, twice := f.flows[r.ID]
	if twice || f.proxy == nil || len(f.flows) == ipc.MaxStages {
		f.env.Tell((&ipc.Relayed{ID: r.ID, Result: ipc.RelayNoRoom}).Encode())
		f.env.Close(fd)
		return
	}
	to := proxy.Target{Addr: netip.AddrPortFrom(netip.AddrFrom16(r.Addr).Unmap(), r.Port), Name: r.Name.String()}
	w := &flow{id: r.ID, pair: -1, socket: fd, proxy: proxy.New(f.proxy, to)}
	f.flows[r.ID] = w
	f.relay(w)
}

// relay goes on with what is said to the proxy, as far as that comes at once. It stops
// to read where the proxy's answer ends.
func (f *Flows) relay(w *flow) {
	p := w.proxy
	for {
		if result, code := p.Result(); result != 0 {
			f.env.Tell((&ipc.Relayed{ID: w.id, Result: result, Code: code}).Encode())
			f.drop(w)
			return
		}
		n, e := 0, syscall.Errno(0)
		out := len(p.Out()) > 0
		if out {
			if n, e = f.env.Write(w.socket, p.Out()); e == 0 {
				p.Wrote(n)
				continue
			}
		} else if n, e = f.env.Read(w.socket, f.buf[:p.Want()]); e == 0 && n > 0 {
			p.Read(f.buf[:n])
			continue
		}
		switch {
		case e != syscall.EAGAIN, !f.await(w, out):
			p.End()
		default:
			return
		}
	}
}

// await has the loop tell when a socket may be written, or else read.
func (f *Flows) await(w *flow, writable bool) bool {
	if w.watched && w.writable == writable {
		return true
	}
	if w.watched {
		f.env.Unwatch(w.socket)
	}
	w.watched, w.writable = f.env.Watch(w.socket, w.id, writable) == 0, writable
	return w.watched
}
