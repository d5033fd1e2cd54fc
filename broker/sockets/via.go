// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/broker/egress"
	"aldente/ipc"
)

// Connections of the guest's may go by a proxy (--via). The egress rules judge where they
// are to lead, and not the proxy. The socket leads to the proxy, and stays here until the
// process for names has asked the proxy for the destination: the answer is read there,
// and nothing behind it (ipc.Relay). Only then the guest hears that it is connected.
//
// The proxy itself is no destination: whoever speaks to it has it connect to anything.

// Via says which proxy connections go by.
type Via struct {
	To     netip.AddrPort // where it is
	Names  bool           // it is told the name of a destination, where a rule by name allows that
	Except []netip.Prefix // where connections lead as without it
	Text   string         // the proxy, for people: without password
}

// Why a flow is refused where there is a proxy: what that does, for people.
const (
	takesTCP  = "takes connections of TCP only"
	notItself = "is not for the guest to speak to"
)

// byProxy has a flow go by the proxy that the rules let be, or refuses it where a proxy
// cannot take it. What has another meaning to the guest than itself is the host's own:
// that does not.
func (c *Config) byProxy(r *request, d decision) decision {
	v := c.Via
	why := ""
	switch {
	case v == nil || d.refused != 0 || d.meaning == redirected || v.direct(d.to.Addr()):
		return d
	case r.proto == ipc.ProtoTCP && v.isAt(d.to):
		why = notItself
	case d.meaning != itself:
		return d
	case r.proto != ipc.ProtoTCP:
		why = takesTCP
	default:
		d.via = v
		return d
	}
	return decision{refused: unix.EACCES, byRules: true, unproxied: why, verdict: egress.Verdict{Rule: "--via: the proxy " + why},
		to: d.to, from: d.from, meaning: d.meaning, path: d.path}
}

// isAt tells whether a destination is the proxy itself, by any address of loopback's if it
// has one of these.
func (v *Via) isAt(to netip.AddrPort) bool {
	return to.Port() == v.To.Port() && (to.Addr().WithZone("") == v.To.Addr() || to.Addr().IsLoopback() && v.To.Addr().IsLoopback())
}

func (v *Via) direct(a netip.Addr) bool {
	return slices.ContainsFunc(v.Except, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}

// toProxy is how the proxy is reached.
func (c *Config) toProxy() decision {
	d := decision{to: c.Via.To, path: c.family(c.Via.To.Addr()).path()}
	if d.to.Addr().IsLoopback() {
		d.Source, d.Interface = netip.Addr{}, ""
	}
	return d
}

// ProxyUsage is what has become of connections for which the proxy was asked.
type ProxyUsage struct {
	Waiting   int    // for its answer
	Connected uint64 // it has said yes
	Refused   uint64 // it has said no
	Failed    uint64 // it was away, silent or made no sense, or too many waited for it
}

// Proxied tells what has become of connections for which the proxy was asked.
func (f *Factory) Proxied() ProxyUsage {
	f.stages.mu.Lock()
	defer f.stages.mu.Unlock()
	u := f.stages.proxied
	u.Waiting = f.stages.held(true)
	return u
}

// proxySaid is what a proxy has answered.
type proxySaid uint8

const (
	nothingYet proxySaid = iota
	saidYes
	saidNo
)

// meant is what an answer means. Where it is the proxy that refuses, it has given a code.
func meant(r *ipc.Relayed) proxySaid {
	switch {
	case r.Result == ipc.RelayDone:
		return saidYes
	case r.Code != 0 && r.Result != ipc.RelayGarbage:
		return saidNo
	}
	return nothingYet
}

func (u *ProxyUsage) count(said proxySaid) {
	switch said {
	case saidYes:
		u.Connected++
	case saidNo:
		u.Refused++
	default:
		u.Failed++
	}
}

// proxyAway counts a connection that has not come to the proxy.
func (g *stages) proxyAway() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.proxied.count(nothingYet)
}

// askProxy has the proxy asked for a flow's destination: its socket is connected.
func (f *Factory) askProxy(t *staged) {
	t.proxying, t.busy = true, true
	if !f.stages.register(t, func(id uint32) { f.relayed(&ipc.Relayed{ID: id, Result: ipc.RelayTimeout}) }) {
		unix.Close(t.fd)
		f.answerLate(t, nothing(unix.EAGAIN)) // the guest tries again
		return
	}
	rec := ipc.Relay{ID: t.id, Port: t.d.to.Port(), Addr: t.d.to.Addr().As16()}
	if v := &t.d.verdict; f.cfg().Via.Names && v.ByName {
		rec.Name, _ = ipc.MakeName(string(v.Name)) // which fits
	}
	err := f.stages.send(rec.Encode(), t.fd)
	g := &f.stages
	g.mu.Lock()
	if t.busy = false; g.flows[t.id] != t {
		unix.Close(t.fd)
	}
	early := t.early
	g.mu.Unlock()
	switch {
	case errors.Is(err, unix.EAGAIN): // it has no room, and the guest tries again
		f.endStaged(t.id, unix.EAGAIN, StageLost)
	case err != nil:
		f.endStaged(t.id, unix.ECONNRESET, StageLost)
	case early != nil: // it has come while this was under way
		f.relayed(early)
	}
}

// relayErrors are what the guest hears of a proxy's answer.
var relayErrors = map[uint8]unix.Errno{
	ipc.RelayDenied: unix.EACCES, ipc.RelayAuth: unix.EACCES, ipc.RelayNetwork: unix.ENETUNREACH, ipc.RelayHost: unix.EHOSTUNREACH,
	ipc.RelayRefused: unix.ECONNREFUSED, ipc.RelayTimeout: unix.ETIMEDOUT, ipc.RelayUnsupported: unix.ENETUNREACH, ipc.RelayFailed: unix.ECONNREFUSED,
	ipc.RelayGarbage: unix.ECONNRESET, ipc.RelayClosed: unix.ECONNRESET, ipc.RelayNoRoom: unix.EAGAIN,
}

// relayed goes on with a flow for which the proxy has answered.
func (f *Factory) relayed(r *ipc.Relayed) {
	g := &f.stages
	g.mu.Lock()
	t := g.flows[r.ID]
	switch {
	case t == nil || !t.proxying:
		g.mu.Unlock()
		return // too late, or never asked for
	case t.busy:
		t.early = r
		g.mu.Unlock()
		return
	}
	t.said = meant(r)
	g.mu.Unlock()
	if r.Result != ipc.RelayDone {
		if t = f.endStaged(r.ID, relayErrors[r.Result], StageLost); t != nil {
			f.tellProxy(t, ipc.RelayText(r.Result), r.Code)
		}
		return
	}
	if _, refused := f.refusedStaged(t); refused { // the rules have changed
		f.endStaged(r.ID, unix.EACCES, StageOtherName)
		return
	}
	if t = g.take(r.ID, func(*StageUsage) {}); t == nil || t.fd < 0 {
		return
	}
	t.proxying = false
	if f.looksAt(&t.q, &t.d) {
		f.proceed(t, nothing(0))
		return
	}
	f.answerLate(t, outcome{fd: t.fd})
	unix.Close(t.fd)
}

// held counts the flows that wait for the proxy, or those that wait for the guest.
func (g *stages) held(proxying bool) (n int) {
	for _, t := range g.flows {
		if t.proxying == proxying {
			n++
		}
	}
	return n
}

// ended counts a flow that has ended as one that is looked at, or for which the proxy was
// asked.
func (g *stages) ended(t *staged, count func(u *StageUsage)) {
	if t.proxying {
		g.proxied.count(t.said)
		return
	}
	count(&g.usage)
}

// ProxyCounters are what has become of connections for which the proxy was asked; none
// where there is no proxy.
func (f *Factory) ProxyCounters() (all []api.Counter) {
	if f.cfg().Via == nil {
		return nil
	}
	u := f.Proxied()
	for _, e := range []struct {
		result string
		n      uint64
	}{{"connected", u.Connected}, {"refused", u.Refused}, {"failed", u.Failed}} {
		all = append(all, api.Counter{
			Name: "proxied_connections_total", Value: float64(e.n), Labels: map[string]string{"result": e.result},
			Help: "Connections of the guest's for which the proxy was asked (--via): it has connected them, has said no, or was away, silent or made no sense.",
		})
	}
	return append(all, api.Counter{Name: "proxied_connections_awaited", Value: float64(u.Waiting), Help: "Connections that wait for the proxy's answer now."})
}

// answerLate is what the worker is told of a flow at the end.
func (f *Factory) answerLate(t *staged, o outcome) (sent bool) {
	o.localPort, o.late = t.localPort, true
	a := o.record(t.q.token, t.q.proto, t.d.to)
	f.tellFlow(&t.q, &t.d, &o)
	return t.s.send(func(channel int) error {
		var rec [ipc.OpenedSize]byte
		a.Encode(rec[:])
		return ipc.Send(channel, rec[:], o.fd)
	})
}

// tellProxy has the log say why a flow did not get by the proxy.
func (f *Factory) tellProxy(t *staged, why string, code uint16) {
	g := &f.stages
	g.mu.Lock()
	said := g.proxyLines.Take(time.Now())
	g.mu.Unlock()
	if !said {
		return
	}
	fields := []any{"proxy", f.cfg().Via.Text, "to", t.d.to.String(), "reason", why}
	if code != 0 {
		fields = append(fields, "code", code)
	}
	f.cfg().Logger.Warn("not connected by the proxy", fields...)
}
