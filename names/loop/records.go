// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"aldente/ipc"
	"aldente/ipc/domain"
	"aldente/names/dns"
	"aldente/names/kernel"
)

// receive takes records of the broker, which is trusted: what cannot be is the end.
func (l *Loop) receive() error {
	buf := l.rec[:] // not of its own: garbage of that size would be a collection for each hundred questions
	for range recordsATurn {
		n, fd, err := ipc.ReceiveNow(l.control, buf)
		if kernel.Busy(err) {
			return nil
		}
		if errors.Is(err, syscall.ECONNRESET) {
			return io.EOF // it had not read all that we have said
		}
		if err != nil {
			return err
		}
		was := l.phase
		kind, err := ipc.ToNames.Check(buf[:n], fd >= 0, l.phase)
		if err == nil {
			err = l.record(kind, buf[:n], fd)
		}
		if err != nil || l.phase == ipc.Running && was != ipc.Running {
			return err // what follows is for whoever runs
		}
	}
	return nil
}

func (l *Loop) record(kind ipc.Kind, rec []byte, fd int) error {
	switch kind {
	case ipc.NamesKindConfig:
		return l.configure(rec)
	case ipc.NamesKindRule:
		return l.rule(rec)
	case ipc.NamesKindRules:
		return l.rules(rec)
	case ipc.NamesKindStart:
		l.notes, l.phase = fd, ipc.Running
	case ipc.NamesKindClient:
		var c ipc.Client
		if err := c.Decode(rec); err != nil {
			return err
		}
		l.client(&c, fd)
	case ipc.NamesKindUpstream:
		var u ipc.Upstream
		if err := u.Decode(rec); err != nil {
			return err
		}
		l.upstream(&u, fd)
	case ipc.NamesKindGranted:
		return l.granted(rec)
	case ipc.NamesKindForget:
		l.engine.Forget()
	case ipc.NamesKindProxy:
		return l.proxy(rec)
	case ipc.NamesKindStage, ipc.NamesKindStageSocket, ipc.NamesKindStageEnd, ipc.NamesKindRelay:
		return l.stage(kind, rec, fd)
	default:
		return fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
	}
	return nil
}

// granted takes the broker's words on names.
func (l *Loop) granted(rec []byte) error {
	for ; len(rec) > 0; rec = rec[ipc.GrantedSize:] {
		var g ipc.Granted
		if err := g.Decode(rec[:ipc.GrantedSize]); err != nil {
			return err
		}
		l.engine.Granted(g.Seq, g.Mask, g.Around, l.now())
	}
	return nil
}

// configure makes the engine.
func (l *Loop) configure(rec []byte) error {
	var c ipc.NamesConfig
	if err := c.Decode(rec); err != nil {
		return err
	}
	o := dns.Config{
		Resolvers: int(c.Resolvers), Random: random,
		NXDOMAIN: c.Flags&ipc.NamesNXDOMAIN != 0, PlainHellos: c.Flags&ipc.NamesHellos != 0,
		Audit: c.Flags&ipc.NamesAudit != 0, Clients: max(l.files-spare, l.files/2),
	}
	for i := range c.Search[:c.NSearch] {
		if n, err := domain.Parse(c.Search[i].String()); err == nil { // others nobody can search
			o.Search = append(o.Search, n)
		}
	}
	l.engine, l.phase = dns.New(o, host{l}), ipc.Starting
	return nil
}

// rule takes one of a set of rules.
func (l *Loop) rule(rec []byte) error {
	var r ipc.NamesRule
	if err := r.Decode(rec); err != nil {
		return err
	}
	p, err := domain.ParsePattern(r.Pattern.String())
	if err != nil {
		return fmt.Errorf("rule %d: %w", r.Index, err)
	}
	if int(r.Index) != len(l.set) {
		return fmt.Errorf("%w: rule %d behind %d", ipc.ErrMalformed, r.Index, len(l.set))
	}
	l.set = append(l.set, domain.Rule{Index: int(r.Index), Pattern: p, Allow: r.Flags&ipc.NameRuleAllow != 0, Narrow: r.Flags&ipc.NameRulePorts != 0})
	return nil
}

// rules puts a set in force.
func (l *Loop) rules(rec []byte) error {
	var r ipc.NamesRules
	if err := r.Decode(rec); err != nil {
		return err
	}
	if int(r.Count) != len(l.set) {
		return fmt.Errorf("%w: %d rules of %d", ipc.ErrMalformed, len(l.set), r.Count)
	}
	l.engine.SetRules(&domain.Rules{List: l.set, Default: r.Default == 1})
	l.set = nil
	return nil
}

// send sends a record to the broker, or has it wait for room.
func (l *Loop) send(rec []byte) {
	l.noted = 0
	if len(l.out) == 0 {
		_, err := kernel.Write(l.control, rec)
		if !kernel.Busy(err) {
			return // an end is read
		}
		_ = l.poll.Change(l.control, token(ofControl, 0), true, true)
	}
	if len(l.out) == maxQueued {
		l.full = true
		return
	}
	l.out = append(l.out, rec)
}

// flush sends what waits.
func (l *Loop) flush() {
	for len(l.out) > 0 {
		if _, err := kernel.Write(l.control, l.out[0]); kernel.Busy(err) {
			return
		}
		l.out[0] = nil
		l.out = l.out[1:]
	}
	l.out = nil
	_ = l.poll.Change(l.control, token(ofControl, 0), true, false)
}

// named writes what the engine tells the broker of a name to rec, all of it.
func named(n *dns.Named, rec []byte) (err error) {
	r := ipc.Named{Seq: n.Seq, TTL: min(n.TTL, ipc.MaxTTL), Type: n.Type}
	if len(n.Aliases) > ipc.MaxAliases || len(n.Addrs) > ipc.MaxNamed {
		return errors.New("more of a name than there may be")
	}
	if r.Name, err = ipc.MakeName(string(n.Name)); err != nil {
		return err
	}
	for i, a := range n.Aliases {
		if r.Alias[i], err = ipc.MakeName(string(a)); err != nil {
			return err
		}
	}
	for i, a := range n.Addrs {
		r.Addr[i] = a.As16()
	}
	r.Aliases, r.Count = uint8(len(n.Aliases)), uint8(len(n.Addrs))
	r.Encode(rec)
	return nil
}
