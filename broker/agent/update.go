// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/foreign"
	"aldente/broker/rtnl"
	"aldente/ipc"
)

// follower is what the agent keeps of a set-up so that the network can be changed later.
type follower struct {
	c     *rtnl.Conn
	index int // of the interface
}

// openFollower opens it, as the broker has asked for with the set-up.
func (s *server) openFollower(index int) error {
	if s.setup.Flags&ipc.AgentSetupFollow == 0 || s.follower != nil {
		return nil
	}
	c, err := rtnl.Dial()
	if err != nil {
		return &failure{"cannot keep a socket to change the network by", err}
	}
	s.follower = &follower{c, index}
	return nil
}

// startUpdate begins a change of the network that was set up.
func (s *server) startUpdate(b []byte) error {
	var u ipc.AgentUpdate
	if err := u.Decode(b); err != nil {
		return err
	}
	if s.follower == nil || s.active {
		return fmt.Errorf("%w: update %d out of place", ipc.ErrMalformed, u.ID)
	}
	s.setup.ID, s.active, s.updating, s.changes = u.ID, true, true, nil
	return nil
}

// update does the changes in their order, as far as it can, and answers.
func (s *server) update() error {
	changes := s.changes
	s.updating, s.changes = false, nil
	warnings, err := s.follower.do(changes)
	if err != nil {
		return s.report(err, true)
	}
	for _, w := range warnings[:min(len(warnings), maxWarnings)] {
		if err := s.report(w, false); err != nil {
			return err
		}
	}
	return ipc.Send(s.channel, (&ipc.AgentDone{ID: s.setup.ID}).Encode(), -1)
}

// do makes the changes. Those of one type that stand together are made together.
func (f *follower) do(changes []ipc.AgentChange) (warnings []error, err error) {
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && changes[n].Type == changes[0].Type {
			n++
		}
		var some []error
		switch changes[0].Type {
		case ipc.AgentNoAddress, ipc.AgentNoRoute:
			some, err = f.remove(changes[:n])
		default:
			some, err = f.add(changes[:n])
		}
		if err != nil {
			return warnings, err
		}
		warnings, changes = append(warnings, some...), changes[n:]
	}
	return warnings, nil
}

// add makes addresses or routes, or finds them made.
func (f *follower) add(changes []ipc.AgentChange) (warnings []error, err error) {
	addrs, routes, err := split(changes, f.index)
	if err != nil {
		return nil, err
	}
	reqs := make([]rtnl.Request, len(addrs))
	for i := range addrs {
		reqs[i] = addrs[i].req
	}
	errs, err := f.c.Do(reqs)
	if err != nil {
		return nil, &failure{"cannot change the network", err}
	}
	for i, e := range errs {
		if e != nil && !errors.Is(e, unix.EEXIST) && !(addrs[i].ipv6 && noIPv6(e)) {
			warnings = append(warnings, &failure{"cannot " + addrs[i].what, e})
		}
	}
	more, err := addRoutes(f.c, routes)
	return append(warnings, more...), err
}

// remove takes addresses or routes away. What is not there any more has gone with
// something else, or by the guest's own doing.
func (f *follower) remove(changes []ipc.AgentChange) (warnings []error, err error) {
	reqs, what := make([]rtnl.Request, len(changes)), make([]string, len(changes))
	for i := range changes {
		ch := &changes[i]
		if ch.Type == ipc.AgentNoAddress {
			a, err := bindAddress(ch.Body, f.index)
			if err != nil {
				return nil, err
			}
			reqs[i], what[i] = rtnl.Request{Type: unix.RTM_DELADDR, Body: ch.Body}, "address "+addressString(a)
			continue
		}
		r, err := bindRoute(ch.Body, f.index)
		if err != nil {
			return nil, err
		}
		reqs[i], what[i] = rtnl.Request{Type: unix.RTM_DELROUTE, Body: r.Body()}, "route to "+routeString(r)
	}
	errs, err := f.c.Do(reqs)
	if err != nil {
		return nil, &failure{"cannot change the network", err}
	}
	for i, e := range errs {
		switch {
		case e == nil, errors.Is(e, unix.ESRCH), errors.Is(e, unix.EADDRNOTAVAIL), errors.Is(e, unix.ENOENT), errors.Is(e, unix.ENODEV), noIPv6(e):
		default:
			warnings = append(warnings, &failure{"cannot remove " + what[i], e})
		}
	}
	return warnings, nil
}

// Follows has the agent keep, at the end of the next set-up, what Sockets.Update takes.
func (c *Client) Follows() { c.flags |= ipc.AgentSetupFollow }

// updateTime is how long Sockets.Update waits.
const updateTime = 10 * time.Second

// updating is the broker's side of an update. There is one at a time: until the agent has
// ended one for which nobody waits any more, there is no other.
type updating struct {
	id    uint32
	open  bool
	said  []string
	ended chan error // one, at its end
}

// Update has the agent make of a network that was set up as one says what another says,
// and returns what could not be done. Nothing that both say is touched, as long as it
// need not be made again behind something that goes. After an error some of it may have
// been done: the same call does the rest. It is for use by one goroutine, after a set-up
// with Follows.
func (s *Sockets) Update(was, is *Setup) (warnings []string, err error) {
	var all []change
	for _, f := range [...][2]*Family{{&was.V4, &is.V4}, {&was.V6, &is.V6}} {
		some, err := difference(f[0], f[1])
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, nil
	}
	if len(all) > ipc.MaxChanges {
		return nil, fmt.Errorf("more than %d addresses and routes", ipc.MaxChanges)
	}
	u := &s.updating
	s.mu.Lock()
	if err := s.err; err != nil || u.open { // what comes in the midst of another it does not take
		s.mu.Unlock()
		return nil, cmp.Or(err, ErrSlow)
	}
	s.id++
	*u = updating{id: s.id, open: true, ended: make(chan error, 1)}
	id, ended, end := u.id, u.ended, time.Now().Add(s.updateTime)
	s.mu.Unlock()
	err = s.tell((&ipc.AgentUpdate{ID: id}).Encode(), end)
	for i := 0; i < len(all) && err == nil; i++ {
		ch := &all[i]
		err = s.tell((&ipc.AgentChange{ID: id, Type: ch.typ, Flags: ch.flags, Body: ch.body}).Encode(), end)
	}
	if err == nil {
		err = s.tell((&ipc.AgentCommit{ID: id, Changes: uint32(len(all))}).Encode(), end)
	}
	if err != nil {
		return nil, err
	}
	late := time.NewTimer(time.Until(end))
	defer late.Stop()
	select {
	case err = <-ended:
	case <-late.C:
		err = ErrSlow
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return u.said, err
}

// tell sends the agent a record of an update, and waits until a moment for room. Others
// who want something of the agent meanwhile do not wait.
func (s *Sockets) tell(rec []byte, end time.Time) error {
	for {
		err := ipc.SendNow(s.client.channel, rec, -1)
		if err != unix.EAGAIN {
			return err
		}
		if time.Now().After(end) {
			return ErrSlow
		}
		time.Sleep(sendAgain)
	}
}

// updated takes what the agent says of an update.
func (s *Sockets) updated(kind ipc.Kind, b []byte) error {
	var d ipc.AgentDone
	var r ipc.AgentReport
	id, err := uint32(0), error(nil)
	if kind == ipc.AgentKindDone {
		err = d.Decode(b)
		id = d.ID
	} else {
		err = r.Decode(b)
		id = r.ID
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := &s.updating
	if !u.open || id != u.id || len(u.said) > maxWarnings {
		return fmt.Errorf("%w: end of update %d", ipc.ErrMalformed, id)
	}
	text := foreign.Line(r.Text.String())
	if r.Errno != 0 {
		text += ": " + unix.Errno(r.Errno).Error()
	}
	switch {
	case kind == ipc.AgentKindDone:
		s.endUpdate(nil)
	case r.Fatal != 0:
		s.endUpdate(errors.New(text))
	default:
		u.said = append(u.said, text)
	}
	return nil
}

// endUpdate ends the update under way, if there is one.
func (s *Sockets) endUpdate(err error) {
	if u := &s.updating; u.open {
		u.open = false
		u.ended <- err
	}
}

// change is one of an update.
type change struct {
	typ, flags uint16
	body       []byte
}

// Same tells whether two networks consist of the same addresses and routes.
func (s *Setup) Same(t *Setup) bool {
	for _, f := range [...][2]*Family{{&s.V4, &t.V4}, {&s.V6, &t.V6}} {
		if d, err := difference(f[0], f[1]); err != nil || len(d) > 0 {
			return false
		}
	}
	return true
}

// list is what a family consists of.
func (f *Family) list() (addrs, routes []change, err error) {
	err = f.changes(func(typ, flags uint16, body []byte) error {
		if len(body) > ipc.MaxChange {
			return fmt.Errorf("an address or route takes %d bytes, at most %d fit", len(body), ipc.MaxChange)
		}
		if typ == ipc.AgentAddress {
			addrs = append(addrs, change{typ, flags, body})
		} else {
			routes = append(routes, change{typ, flags, body})
		}
		return nil
	})
	return addrs, routes, err
}

// without are the changes in a that are not in b.
func without(a, b []change) (rest []change) {
	has := make(map[string]bool, len(b))
	for i := range b {
		has[string(b[i].body)] = true
	}
	for i := range a {
		if !has[string(a[i].body)] {
			rest = append(rest, a[i])
		}
	}
	return rest
}

// undone turns what makes an address or route into what takes it away.
func undone(all []change) []change {
	for i := range all {
		all[i].typ, all[i].flags = all[i].typ+1, 0 // RTM_DEL* follows RTM_NEW*
	}
	return all
}

// difference are the changes that make of one family the other. Where an address goes,
// the kernel may take others of its network along, and routes. So all is said again
// then; where none goes, what is new comes before what is old leaves, so that no moment is
// without a route.
func difference(was, is *Family) ([]change, error) {
	oldAddrs, oldRoutes, err := was.list()
	if err != nil {
		return nil, err
	}
	addrs, routes, err := is.list()
	if err != nil {
		return nil, err
	}
	goneAddrs, goneRoutes := undone(without(oldAddrs, addrs)), undone(without(oldRoutes, routes))
	if len(goneAddrs) > 0 {
		return slices.Concat(goneRoutes, goneAddrs, addrs, routes), nil
	}
	addrs, routes = without(addrs, oldAddrs), without(routes, oldRoutes)
	// One that is the same to the kernel, and has other attributes, has to make room.
	same := map[string]bool{}
	for i := range routes {
		same[routeKey(routes[i].body)] = true
	}
	var first, last []change
	for _, ch := range goneRoutes {
		if same[routeKey(ch.body)] {
			first = append(first, ch)
		} else {
			last = append(last, ch)
		}
	}
	return slices.Concat(first, addrs, routes, last), nil
}

// routeKey is by what the kernel tells routes of one table apart.
func routeKey(body []byte) string {
	r, ok := rtnl.RouteOf(body)
	if !ok {
		return ""
	}
	metric, _ := r.Attrs().Uint32(unix.RTA_PRIORITY)
	if metric == 0 && r.Family() == unix.AF_INET6 {
		metric = defaultMetric6
	}
	return fmt.Sprintf("%v %d %v %x", r.Dst(), metric, r.Gateway(), []byte(r.Hops()))
}

// defaultMetric6 is IP6_RT_PRIO_USER, include/net/ip6_route.h: what IPv6 takes for a
// metric of zero.
const defaultMetric6 = 1024
