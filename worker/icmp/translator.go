// SPDX-License-Identifier: Apache-2.0

// Package icmp translates the guest's echo requests, ICMP and ICMPv6, to ping
// sockets on the host (icmp(7)), and the replies back. Such a socket has an
// identifier of its own, which the kernel writes into requests and by which it
// finds replies; the guest sees the one it has chosen. No other ICMP message
// of the guest leaves.
package icmp

import (
	"cmp"
	"syscall"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

const (
	second = int64(1_000_000_000)
	// idleLife is how long a flow lives without requests and replies, in
	// nanoseconds.
	idleLife = 60 * second

	// turnReplies bounds what is read from one socket at a time.
	turnReplies = 64

	headerLen = 8 // of an echo message

	// Bounds on requests that wait for sockets: requests of one flow, chunks of
	// all flows.
	maxWaiting = 4
	maxChunks  = 256
)

// state is where a flow is; zero is none.
type state uint8

const (
	stateOpening state = 1 + iota // the broker was asked for a socket
	stateOpen                     // sock is that socket
	stateRefused                  // there is none; remembered for a while
)

// conn is one flow: an identifier of the guest's, and a remote.
type conn struct {
	state   state
	more    bool    // there is more to read than one turn allows
	how     ipc.How // it ends; zero: before it was used
	sock    datagram.Socket
	refusal flow.Refusal   // stateRefused: what the guest is told
	queue   datagram.Queue // of requests, in state opening
	last    int64          // when it was used, in nanoseconds
	peer    packet.Addr    // where the socket is really connected to

	flow.Traffic
}

// Stats counts messages, where nothing else is said.
type Stats struct {
	ToHost, ToGuest uint64 // requests, replies
	Bad             uint64 // from the guest: no echo request between unicast addresses
	QueueFull       uint64 // from the guest, too many before the socket came
	WriteFailed     uint64 // from the guest, not taken by the socket
	Strange         uint64 // from the host: no echo reply
	SendFailed      uint64 // frames to the guest, not taken by the link

	Opened, Refused uint64 // flows
	NoRoom          uint64 // flows that could not be made
	Expired, Broken uint64 // flows
	Revoked         uint64 // flows that the egress rules refuse since they were asked
	Errors          uint64 // ICMP errors sent to the guest
}

// Translator holds all echo flows of a lane.
type Translator struct {
	env   Env
	g     *flow.Guest
	wheel *store.Wheel
	timer uint32 // first timer id
	flows *store.Table[conn]
	more  int // flows with more set

	// Ended hears of flows whose socket is about to be closed. Nil: nobody asks.
	Ended func(fd int32, how ipc.How, t *flow.Traffic)

	queues  datagram.Queues
	buf     []byte // one message from a socket
	frame   []byte
	ends    packet.Ends
	offload packet.Offload // always zero: checksums are complete
	frag    packet.Fragmenter
	fragID  uint32
	emit    func(headers, payload []byte)
	notices datagram.Notices
	writer  datagram.Writer
	open    ipc.Open

	Stats Stats // since New
}

// New makes a translator for up to maxFlows flows, which uses as many timer ids
// from timerBase on. What waits for sockets is in chunks of pool.
func New(env Env, g *flow.Guest, w *store.Wheel, timerBase uint32, pool *store.Pool, maxFlows int) *Translator {
	t := &Translator{
		env: env, g: g, wheel: w, timer: timerBase,
		flows:  store.NewTable[conn](maxFlows),
		buf:    make([]byte, datagram.BufferSize),
		queues: datagram.NewQueues(pool, maxChunks),
		frame:  make([]byte, datagram.BufferSize+packet.MaxHeaders),
	}
	t.notices = datagram.NewNotices(env, g, t.frame, quote, t.notice)
	t.writer = datagram.NewWriter(env)
	t.writer.Pending, t.writer.TooLong, t.writer.Failed = t.pending, t.notices.TooLong, t.failed
	t.emit = t.send
	return t
}

// Len is the number of flows.
func (t *Translator) Len() int { return t.flows.Len() }

// Input takes an echo request from the guest, whose checksum was found right.
// e is what p holds.
func (t *Translator) Input(p *packet.Packet, o *packet.Offload, e *packet.Echo) {
	request := uint8(packet.ICMPEchoRequest)
	if p.IPVersion == 6 {
		request = packet.ICMPv6EchoRequest
	}
	if p.Fragment || p.TTL == 0 || e.Type != request || e.Code != 0 || !unicast(&p.Src) || !unicast(&p.Dst) {
		t.Stats.Bad++
		return
	}
	k := store.MakeKey(&p.Dst, &p.Src, e.ID, e.ID)
	i := t.flows.Find(&k)
	if i == store.None {
		if i = t.openOut(&k, p, e.ID); i == store.None {
			return
		}
	}
	c := t.flows.At(i)
	c.Out(len(p.Payload()), 1)
	switch c.state {
	case stateOpen:
		c.last = t.env.Now()
		t.write(i, c, p.Payload(), datagram.MarkOf(p))
	case stateOpening:
		c.last = t.env.Now()
		if c.queue.Len() == maxWaiting || !t.queues.Add(&c.queue, p.Payload(), datagram.MarkOf(p)) {
			t.Stats.QueueFull++
		}
	case stateRefused:
		t.notices.Refused(c.refusal, t.flows.Key(i), p.Payload())
	}
}

func unicast(a *packet.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsBroadcast()
}

// openOut makes a flow and asks the broker for its socket.
func (t *Translator) openOut(k *store.Key, p *packet.Packet, id uint16) uint32 {
	i := store.None
	if t.g.Shares.May(flow.ShareEcho, 1) {
		i = t.flows.Insert(k)
	}
	if i == store.None {
		t.Stats.NoRoom++
		return i
	}
	t.g.Shares.Take(flow.ShareEcho, 1)
	c := t.flows.At(i)
	c.sock, c.state, c.last = datagram.NewSocket(-1, 0), stateOpening, t.env.Now()
	c.Born = c.last
	t.wheel.Set(t.timer+i, c.last+idleLife)
	t.open = ipc.Open{
		Token: flow.Token(flow.OwnerICMP, t.flows.Gen(i), i), Proto: p.Proto,
		Src: p.Src, Dst: p.Dst, SrcPort: id,
	}
	if !t.env.Open(&t.open) {
		t.Stats.NoRoom++
		t.remove(i, c)
		return store.None
	}
	return i
}

// Opened takes the broker's answer to the Open with this token.
func (t *Translator) Opened(token uint64, fd int32, o *ipc.Opened) {
	_, gen, i := flow.SplitToken(token)
	if !t.flows.Live(i, gen) || t.flows.At(i).state != stateOpening {
		if fd >= 0 {
			t.env.Close(fd)
		}
		return
	}
	c := t.flows.At(i)
	if o.Errno != 0 || fd < 0 {
		t.refuse(i, c, syscall.Errno(o.Errno), o.Flags&ipc.OpenedProhibited != 0)
		return
	}
	c.sock.FD = fd
	if t.env.Watch(fd, token, flow.Readable) != 0 {
		t.Stats.NoRoom++
		t.remove(i, c)
		return
	}
	c.state = stateOpen
	c.peer = o.Addr
	t.Stats.Opened++
	for c.state == stateOpen && c.queue.Len() > 0 {
		n, m := t.queues.Next(&c.queue, t.buf)
		t.write(i, c, t.buf[:n], m)
	}
	t.queues.Clear(&c.queue)
}

// refuse ends the wait for a socket. Without permission to open ping sockets
// (net.ipv4.ping_group_range) that is no news for the guest: requests then
// stay without reply, as with a silent remote.
func (t *Translator) refuse(i uint32, c *conn, e syscall.Errno, prohibited bool) {
	t.Stats.Refused++
	unpermitted := !prohibited && (e == syscall.EACCES || e == syscall.EPERM)
	if prohibited {
		e = syscall.EACCES
	}
	remote, _ := t.flows.Key(i).Remote()
	if c.refusal = flow.Refuse(e, remote.Is4()); c.refusal.Again {
		t.remove(i, c)
		return
	}
	c.refusal.Told = c.refusal.Told && !unpermitted
	c.state = stateRefused
	for c.queue.Len() > 0 {
		n, _ := t.queues.Next(&c.queue, t.buf)
		t.notices.Refused(c.refusal, t.flows.Key(i), t.buf[:n])
	}
	t.queues.Clear(&c.queue)
	c.last = t.env.Now()
	t.wheel.Set(t.timer+i, c.last+datagram.RefusedLife)
}

// write sends one request.
func (t *Translator) write(i uint32, c *conn, msg []byte, m datagram.Mark) {
	v4 := c.peer.Is4()
	t.writer.SetHeader(&c.sock, v4, m.TTL, m.Class)
	t.writer.SetDF(&c.sock, v4, m.DF, len(msg))
	if t.writer.WriteOne(i, &c.sock, msg) {
		t.Stats.ToHost++
	} else {
		t.Stats.WriteFailed++
	}
}

// Timer is called when the timer with this id fires.
func (t *Translator) Timer(id uint32) {
	i := id - t.timer
	c := t.flows.At(i)
	if c.state == 0 {
		return
	}
	life := idleLife
	if c.state == stateRefused {
		life = datagram.RefusedLife
	}
	if c.more && t.env.CanSend() {
		t.receive(i, c)
		if c.state == 0 || c.more {
			return
		}
	}
	if due := c.last + life; due > t.env.Now() {
		t.wheel.Set(id, due)
		return
	}
	t.Stats.Expired++
	c.how = ipc.EndIdle
	t.remove(i, c)
}

// remove ends a flow and frees all it holds.
func (t *Translator) remove(i uint32, c *conn) {
	t.queues.Clear(&c.queue)
	if c.sock.FD >= 0 {
		if t.Ended != nil {
			t.Ended(c.sock.FD, cmp.Or(c.how, ipc.EndUnused), &c.Traffic)
		}
		t.env.Close(c.sock.FD)
	}
	t.setMore(c, false)
	t.wheel.Cancel(t.timer + i)
	t.g.Shares.Take(flow.ShareEcho, -1)
	*c = conn{sock: datagram.NewSocket(-1, 0)}
	t.flows.Remove(i)
}

// Revoke ends the flows whose sockets are connected to a peer.
func (t *Translator) Revoke(peer packet.Addr) {
	t.flows.Each(func(i uint32) {
		if c := t.flows.At(i); c.state == stateOpen && c.peer == peer {
			t.revoke(i, c)
		}
	})
}

// RevokeFlow is Revoke for the flow whose request had this token.
func (t *Translator) RevokeFlow(token uint64) {
	_, gen, i := flow.SplitToken(token)
	if t.flows.Live(i, gen) && t.flows.At(i).state == stateOpen {
		t.revoke(i, t.flows.At(i))
	}
}

// Gone ends the flows whose sockets have lost their address, as gone tells: what the guest
// sends next gets another.
func (t *Translator) Gone(gone func(fd int32) bool) {
	t.flows.Each(func(i uint32) {
		if c := t.flows.At(i); c.state == stateOpen && c.sock.FD >= 0 && gone(c.sock.FD) {
			c.how = ipc.EndGone
			t.remove(i, c)
		}
	})
}

func (t *Translator) revoke(i uint32, c *conn) {
	t.Stats.Revoked++
	c.how = ipc.EndRevoked
	t.remove(i, c)
}

// Close ends all flows.
func (t *Translator) Close() {
	t.flows.Each(func(i uint32) { t.remove(i, t.flows.At(i)) })
}
