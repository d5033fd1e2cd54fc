// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// rcvScale is the shift of the windows we advertise, RFC 7323 section 2: with
// it the largest window is 8 MiB.
const rcvScale = 7

// defaultMSS is what a peer takes that does not say, RFC 9293 section 3.7.1.
const (
	defaultMSS4 = 536
	defaultMSS6 = 1220
)

// acceptBurst bounds the connections taken from a listener at a time.
const acceptBurst = 64

// hasRoom tells whether one more flow fits that holds a descriptor of this share. A
// part of the table and of the chunks is kept for the other direction, as it is of
// the descriptors.
func (t *Translator) hasRoom(s flow.Share) bool {
	other := flow.ShareIn + flow.ShareOut - s
	kept, places := max(t.least[other]-t.made[other], 0), max(t.least[other]-t.places[other], 0)
	return t.flows.Len()+places < t.flows.Cap() && t.chunksLeft() >= minReserve*(1+kept) && t.g.Shares.May(s, 1)
}

// makeRoom makes room for a connection that the guest asks for: the oldest that it
// has asked for, and that nobody has answered, ends. Those that are made are not
// touched.
func (t *Translator) makeRoom() {
	for !t.hasRoom(flow.ShareOut) {
		i := t.halfOpen.Oldest()
		if i == store.None {
			return
		}
		t.Stats.Evicted++
		c := t.flows.At(i)
		c.ends(ipc.EndEvicted)
		t.sendRST(i, c)
		t.abort(i, c)
		t.Sweep()
	}
}

// leaveHalfOpen takes a flow off the list of those that are not made yet.
func (t *Translator) leaveHalfOpen(i uint32, c *conn) {
	if c.has(flagHalfOpen) {
		c.clear(flagHalfOpen)
		t.halfOpen.Remove(i)
	}
}

// share is what a flow's descriptor counts as.
func (c *conn) share() flow.Share {
	if c.has(flagOut) {
		return flow.ShareOut
	}
	return flow.ShareIn
}

// giveBack returns what a flow has of the lane's descriptors.
func (t *Translator) giveBack(c *conn) {
	if c.has(flagShare) {
		c.clear(flagShare)
		t.g.Shares.Take(c.share(), -1)
		t.made[c.share()]--
	}
}

// insert makes a flow in its first state. Preconditions: the caller has no other
// in hand, since those that have ended may have to make room.
func (t *Translator) insert(k *store.Key, s state) (uint32, *conn) {
	share, flags := flow.ShareIn, flagShare
	if s == stateOpening {
		share, flags = flow.ShareOut, flagShare|flagOut|flagHalfOpen
	}
	if !t.hasRoom(share) {
		t.Sweep()
	}
	if s == stateOpening {
		t.makeRoom()
	}
	if !t.hasRoom(share) {
		t.Stats.NoMemory++
		return store.None, nil
	}
	i := t.flows.Insert(k)
	if i == store.None {
		t.Stats.NoMemory++
		return store.None, nil
	}
	c := t.flows.At(i)
	c.fd = -1
	c.state, c.flags = s, flags
	t.g.Shares.Take(share, 1)
	t.made[share]++
	t.places[share]++
	if s == stateOpening {
		t.halfOpen.Add(i)
	}
	c.cwnd = noCwnd
	c.qHead, c.qTail = store.None, store.None
	c.iss = t.isn(k)
	c.sndUna, c.sndNxt, c.sndMax = c.iss, c.iss, c.iss
	c.rcvScale = rcvScale
	c.quickReplies = t.quickReplies
	c.seenAt = t.env.Now()
	c.Born = c.seenAt
	t.reserveFirst(c)
	return i, c
}

// options takes over what the guest's SYN or SYN-ACK says.
func (t *Translator) options(c *conn, s *packet.TCP, v4 bool) {
	mss, ip := uint16(defaultMSS6), 40
	if v4 {
		mss, ip = defaultMSS4, 20
	}
	if s.MSS != 0 {
		mss = s.MSS
	}
	// Never more than the link takes, never so little that headers are all
	// there is: a guest that says one byte gets the smallest IP allows.
	mss = min(mss, uint16(max(t.g.LinkMTU()-ip-20, 128)), maxPayload)
	c.mss = max(mss, 48)
	if s.SACKPermitted {
		c.set(flagSACK)
	}
	if s.WScale >= 0 {
		c.sndScale = uint8(s.WScale)
	} else {
		c.sndScale, c.rcvScale = 0, 0
	}
	c.sndWnd = uint32(s.Window) // never scaled in a SYN, RFC 7323 section 2.2
	c.rcvNxt = s.Seq + 1
	c.hostSeq, c.rcvEdge = c.rcvNxt, c.rcvNxt
	c.sndWl1 = s.Seq
}

// openOut starts a connection that the guest asked for with a SYN.
func (t *Translator) openOut(k *store.Key, p *packet.Packet, s *packet.TCP) {
	if s.SrcPort == 0 || s.DstPort == 0 || !unicast(&p.Dst) || !unicast(&p.Src) {
		t.Stats.BadSegments++
		return
	}
	i, c := t.insert(k, stateOpening)
	if c == nil {
		return // the guest tries again: so it waits for room, as connections to it do
	}
	t.options(c, s, p.IPVersion == 4)
	t.open = ipc.Open{
		Token: t.token(i),
		Proto: ipc.ProtoTCP,
		Src:   p.Src, Dst: p.Dst, SrcPort: s.SrcPort, DstPort: s.DstPort,
	}
	if !t.env.Open(&t.open) {
		t.Stats.NoMemory++
		t.end(i, c)
	}
}

func unicast(a *packet.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsBroadcast()
}

// Opened takes the broker's answer to the Open with this token.
func (t *Translator) Opened(token uint64, fd int32, o *ipc.Opened) {
	_, gen, i := flow.SplitToken(token)
	if !t.flows.Live(i, gen) || t.flows.At(i).state != stateOpening {
		if fd >= 0 {
			t.env.Abort(fd) // nobody waits for it any more
		}
		return
	}
	c := t.flows.At(i)
	if o.Errno != 0 || fd < 0 {
		t.refuse(i, c, syscall.Errno(o.Errno), o.Flags&ipc.OpenedProhibited != 0)
		return
	}
	c.fd = fd
	if a := packet.Addr(o.Addr); a.Is4() && t.g.Has(ipc.FlagPeekOff4) || !a.Is4() && t.g.Has(ipc.FlagPeekOff6) {
		c.set(flagPeekOff)
	}
	if o.Flags&ipc.OpenedStaged != 0 {
		c.set(flagStaged)
		t.connected(i, c)
		return
	}
	c.state = stateConnecting
	events := uint32(flow.Readable)
	if o.Flags&ipc.OpenedInProgress != 0 {
		c.set(flagAwaitRoom)
		events |= flow.Writable
	}
	if e := t.env.Watch(fd, token, events); e != 0 {
		c.set(flagAbort) // it may have been answered
		t.refuse(i, c, e, false)
		return
	}
	if o.Flags&ipc.OpenedInProgress == 0 {
		t.connected(i, c)
	}
}

// connected answers the guest's SYN: the host's end is there. What the host has
// to say makes an event, now or later.
func (t *Translator) connected(i uint32, c *conn) {
	t.Stats.Opened++
	c.state = stateSynAckSent
	if !c.has(flagStaged) {
		c.set(flagWritable)
	}
	c.sndNxt, c.sndMax = c.iss+1, c.iss+1
	c.deqSeq, c.peekSeq = c.iss+1, c.iss+1
	t.sendSYN(i, c)
	t.startRTO(c)
	t.arm(i, c)
}

// refuse tells the guest that its connection came to nothing: RST, or the
// ICMP error that a router would have sent (RFC 1122 section 4.2.3.9).
func (t *Translator) refuse(i uint32, c *conn, e syscall.Errno, prohibited bool) {
	t.Stats.Refused++
	c.ends(ipc.EndRefused)
	if prohibited {
		e = syscall.EACCES
	}
	remote, _ := t.flows.Key(i).Remote()
	switch r := flow.Refuse(e, remote.Is4()); {
	case r.Reset:
		t.sendRST(i, c)
	case r.Again:
		t.Stats.NoMemory++ // as where a table is full: the guest tries again
	default:
		t.sendUnreachable(i, c, r.Type, r.Code)
	}
	t.end(i, c)
}

// AddListener takes over a listening socket.
func (t *Translator) AddListener(l *ipc.Listener, fd int32) {
	n := listener{id: l.ID, fd: fd, flags: l.Flags, guestPort: l.GuestPort, target: l.Target}
	at := len(t.listeners)
	if k := len(t.unused); k > 0 {
		at, t.unused = int(t.unused[k-1]), t.unused[:k-1]
		t.listeners[at] = n
	} else {
		t.listeners = append(t.listeners, n)
	}
	t.g.Shares.Reduce(1)
	// Connections have it from their listener. What is said in small pieces is not to
	// wait for acknowledgments, by the link or past it; a guest's own Nagle has done
	// its work.
	t.env.Option(fd, flow.OptionNoDelay, 1)
	if e := t.env.Watch(fd, flow.Token(flow.OwnerTCPListener, l.ID, uint32(at)), flow.Readable); e != 0 {
		t.g.Shares.Reduce(-1)
		t.env.Close(fd)
		t.listeners[at] = listener{}
		t.unused = append(t.unused, uint32(at))
	}
}

// RemoveListener closes a listener; connections taken from it stay.
func (t *Translator) RemoveListener(id uint32) {
	if k := t.placeOf(id); k >= 0 {
		l := &t.listeners[k]
		t.g.Shares.Reduce(-1)
		t.env.Close(l.fd)
		*l = listener{}
		t.unused = append(t.unused, uint32(k))
	}
}

// RetargetListener gives a listener another target; connections taken from it stay.
func (t *Translator) RetargetListener(l *ipc.Listener) {
	if k := t.placeOf(l.ID); k >= 0 {
		n := &t.listeners[k]
		n.flags, n.guestPort, n.target = l.Flags, l.GuestPort, l.Target
	}
}

// placeOf returns where a listener is, or -1. Those of a rule come in order, so
// that the next one is looked for behind the last.
func (t *Translator) placeOf(id uint32) int {
	for i := range t.listeners {
		k := (t.lastListener + i) % len(t.listeners)
		if t.listeners[k].id == id && id != 0 {
			t.lastListener = k + 1
			return k
		}
	}
	return -1
}

// ListenerReady takes the connections that wait on a listener.
func (t *Translator) ListenerReady(token uint64, events uint32) {
	_, id, k := flow.SplitToken(token)
	if int(k) >= len(t.listeners) || t.listeners[k].id&0xffffff != id {
		return
	}
	t.accept(&t.listeners[k])
}

// acceptAll goes on with connections that wait for room, and with the listeners that
// were left before they were empty.
func (t *Translator) acceptAll() {
	t.paused = false
	t.unpark()
	for k := range t.listeners {
		if l := &t.listeners[k]; l.used() && l.waiting {
			t.accept(l)
		}
	}
}

// accept takes connections until none waits; when there is no room or the
// burst is long, the rest waits in the kernel's backlog for another turn.
func (t *Translator) accept(l *listener) {
	l.waiting = true
	for range acceptBurst {
		if !t.mayAccept(l) {
			t.starved = true // until a flow ends
			return
		}
		fd, peer, port, e := t.env.Accept(l.fd)
		switch e {
		case 0:
			t.g.Accept.Spend()
			t.place(&parked{*l, fd, peer, port})
		case syscall.EAGAIN:
			l.waiting = false
			return
		case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
			t.Stats.NoMemory++
			t.starved = true // until a descriptor is closed
			return
		case syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EOPNOTSUPP:
			l.waiting = false // no listener: it would fail for ever
			return
		}
		// Any other error is that of a connection which is gone already,
		// accept(2).
	}
	t.paused = true
}

// Incoming takes a connection that was accepted for us; without a descriptor, one for
// which there was none left. It comes where there is no room, too: some may wait for
// that.
func (t *Translator) Incoming(k *ipc.Incoming, fd int32) {
	if fd < 0 {
		t.Stats.NoMemory++
		return
	}
	t.place(&parked{listener{id: k.ID, fd: -1, flags: k.Flags, guestPort: k.GuestPort, target: k.Target}, fd, k.Peer, k.Port})
}

// openIn starts a connection towards the guest for one accepted on the host.
func (t *Translator) openIn(l *listener, fd int32, peer packet.Addr, port uint16) {
	remote, guest := t.g.Inbound(peer)
	if !l.target.IsZero() {
		remote, guest = t.g.InboundTo(l.target, peer), l.target
	}
	if guest.IsZero() || guest.Is4() != remote.Is4() {
		t.resetSocket(fd)
		return
	}
	k := store.MakeKey(&remote, &guest, port, l.guestPort)
	if !t.vacant(&k) {
		t.resetSocket(fd)
		return
	}
	i, c := t.insert(&k, stateSynSent)
	if c == nil {
		t.resetSocket(fd)
		return
	}
	c.fd, c.listener = fd, l.id
	c.either = l.target.IsZero() && peer == flow.OtherLoopback(true)
	if t.Accepted != nil {
		t.Accepted(fd, t.token(i), l.id, peer, port)
	}
	if e := t.env.Watch(fd, t.token(i), flow.Readable); e != 0 {
		t.abort(i, c)
		return
	}
	// The listener may be one socket for both families, so that an IPv4
	// connection is one of IPv6's.
	if t.g.Has(ipc.FlagPeekOff4|ipc.FlagPeekOff6) && t.env.Option(fd, flow.OptionPeekOff, 0) == 0 {
		c.set(flagPeekOff)
	}
	t.Stats.Accepted++
	c.set(flagWritable) // what the host has to say makes an event
	c.sndNxt, c.sndMax = c.iss+1, c.iss+1
	c.deqSeq, c.peekSeq = c.iss+1, c.iss+1
	t.sendSYN(i, c)
	t.startRTO(c)
	t.arm(i, c)
}

// eitherFamily has a connection from [::1], whose SYN nobody has answered, go on by the
// family that the guest has shown since. What it has could not be known before it had
// sent anything.
func (t *Translator) eitherFamily(i uint32, c *conn) {
	remote, guest := t.g.Inbound(flow.OtherLoopback(true))
	old, port := t.flows.Key(i).Remote()
	_, guestPort := t.flows.Key(i).Guest()
	if guest.IsZero() || guest.Is4() != remote.Is4() || remote.Is4() == old.Is4() {
		return
	}
	if k := store.MakeKey(&remote, &guest, port, guestPort); t.vacant(&k) {
		t.flows.Rename(i, &k)
	}
}

// sourceTries bounds the search for a source port. Ports of one remote are
// all in use only if that holds tens of thousands of connections.
const sourceTries = 256

// vacant makes sure that no flow has key k. Two connections of the host may look
// the same to the guest. A peer may use its port again while the guest has still
// to take the last bytes of the connection before, or may speak to two addresses
// or two ports of the host from one port. The later one gets another source port
// towards the guest, below 1024 if its own is. It reports false if there is
// none.
func (t *Translator) vacant(k *store.Key) bool {
	old := t.flows.Find(k)
	if old == store.None {
		return true
	}
	switch c := t.flows.At(old); {
	case c.state == stateTimeWait:
		t.end(old, c)
		return true
	case c.state == stateOpen && c.guestDone() && after(c.sndUna, c.finSeq):
		t.detach(old, c)
		return true
	}
	remote, port := k.Remote()
	guest, guestPort := k.Guest()
	first, ports := uint32(1024), uint32(1<<16-1024)
	if port < 1024 {
		first, ports = 1, 1023
	}
	start := t.isn(k)
	for n := range uint32(sourceTries) {
		*k = store.MakeKey(&remote, &guest, uint16(first+(start+n)%ports), guestPort)
		if t.flows.Find(k) == store.None {
			return true
		}
	}
	return false
}

func (t *Translator) resetSocket(fd int32) {
	t.env.Abort(fd)
	t.Freed()
	t.Stats.Reset++
}
