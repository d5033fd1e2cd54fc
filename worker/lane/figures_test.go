// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
)

// curious is a broker that asks.
type curious struct {
	always  bool // again and again
	moves   int  // of the world when it asked last
	ask     ipc.Ask
	waiting bool

	flows   []ipc.Flow // of the last answer
	figures [ipc.NumFigures]uint64
	next    uint32
	answers int // that have ended
}

// question asks the lane.
func (w *world) question(what uint8, cursor uint32, most uint8) {
	w.curious.ask = ipc.Ask{ID: w.curious.ask.ID + 1, What: what, Cursor: cursor, Max: most}
	w.curious.waiting, w.curious.flows = true, nil
	var rec [ipc.AskSize]byte
	w.curious.ask.Encode(rec[:])
	w.tell(rec[:], -1)
}

// askAgain asks, one after the other, for all flows and all figures, over and over.
func (w *world) askAgain() {
	q := &w.curious
	if !q.always || q.waiting || w.moves < q.moves+8 { // its own turns are such moves too
		return
	}
	q.moves = w.moves
	what := q.ask.What
	if q.next == 0 {
		what = ipc.AskFlows + ipc.AskFigures - max(what, ipc.AskFlows)
	}
	w.question(what, q.next, uint8(1+w.r.IntN(ipc.MaxFigures)))
}

// answerHeard takes a record of the answer, which has to be as it may be.
func (w *world) answerHeard(kind ipc.Kind, rec []byte) {
	q := &w.curious
	if !q.waiting {
		w.t.Fatalf("a record of kind %#x, and nobody has asked", kind)
	}
	id := uint32(0)
	switch kind {
	case ipc.KindFlow:
		var f ipc.Flow
		if err := f.Decode(rec); err != nil {
			w.t.Fatal(err)
		}
		if q.flows, id = append(q.flows, f), f.ID; q.ask.What != ipc.AskFlows || len(q.flows) > int(q.ask.Max) || f.Idle > f.Age {
			w.t.Fatalf("flow %d of %+v: %+v", len(q.flows), q.ask, f)
		}
	case ipc.KindFigures:
		var f ipc.Figures
		if err := f.Decode(rec); err != nil {
			w.t.Fatal(err)
		}
		id = f.ID
		if q.ask.What != ipc.AskFigures || uint32(f.First) < q.ask.Cursor {
			w.t.Fatalf("figures from %d on for %+v", f.First, q.ask)
		}
		copy(q.figures[f.First:], f.Values[:f.N])
	case ipc.KindAnswered:
		var a ipc.Answered
		if err := a.Decode(rec); err != nil {
			w.t.Fatal(err)
		}
		// Whoever follows the cursor comes to an end soon.
		if id = a.ID; a.Next != 0 && a.Next < q.ask.Cursor+uint32(q.ask.Max) {
			w.t.Fatalf("answer to %+v goes on at %d", q.ask, a.Next)
		}
		q.next, q.waiting = a.Next, false
		q.answers++
	}
	if id != q.ask.ID {
		w.t.Fatalf("answer to question %d instead of %d", id, q.ask.ID)
	}
}

// all asks for all flows, or for all figures.
func (w *world) all(what uint8, most uint8) (flows []ipc.Flow) {
	w.t.Helper()
	for cursor := uint32(0); ; cursor = w.curious.next {
		w.question(what, cursor, most)
		w.turn()
		if w.curious.waiting {
			w.t.Fatal("no answer")
		}
		if flows = append(flows, w.curious.flows...); w.curious.next == 0 {
			return flows
		}
	}
}

// TestFigureNumbers: the lane's counters are those of the table, in its order.
func TestFigureNumbers(t *testing.T) {
	l := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true).l
	var names []string
	for _, c := range l.counters() {
		of := reflect.TypeOf(c.now())
		for i := range of.NumField() {
			names = append(names, c.name+"."+of.Field(i).Name)
		}
	}
	if !slices.Equal(names, ipc.Counters[:]) {
		t.Errorf("the worker counts\n%q\nthe table of figures has\n%q", names, ipc.Counters)
	}
	if len(l.figures.gauges) != ipc.NumGauges {
		t.Errorf("%d gauges", len(l.figures.gauges))
	}
	places := uint32(0)
	for _, w := range l.figures.walks {
		places += w.size
	}
	if places == 0 || maxTCP+maxUDP+maxICMP+6<<16/2+maxBypassUDP >= ipc.MaxCursor {
		t.Errorf("%d places for flows, cursors end at %d", places, ipc.MaxCursor)
	}
}

// TestFiguresTold: what was counted is told by its number, also in small pieces, and
// that turns take time.
func TestFiguresTold(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true)
	for _, most := range []uint8{1, 2, ipc.MaxFigures} {
		w.turn()
		w.l.tcp.Stats.Retransmits += 3
		w.l.bypass.Stats.Expired += 5
		w.l.link.Counters().Refused += 7
		w.l.figures.requested(99, w.now-3000)
		w.l.figures.answered(99, w.now)
		w.l.figures.answered(99, w.now) // once
		w.l.figures.requested(99, w.now)
		w.l.figures.answered(99+requestSlots, w.now) // another
		w.curious.figures = [ipc.NumFigures]uint64{}
		w.all(ipc.AskFigures, most)
		got := &w.curious.figures
		for name, want := range map[string]uint64{"tcp.Retransmits": w.l.tcp.Stats.Retransmits, "bypass.Expired": w.l.bypass.Stats.Expired,
			"link.Refused": w.l.linksGone.Refused + w.l.link.Counters().Refused, "lane.Sent": w.l.Stats.Sent} {
			if n := got[slices.Index(ipc.Counters[:], name)]; n != want || n == 0 {
				t.Errorf("%s=%d, want %d", name, n, want)
			}
		}
		turns, answers := got[ipc.FirstHistogram:][:ipc.HistogramSize], got[ipc.FirstHistogram+ipc.HistogramSize:]
		sum := uint64(0)
		for _, n := range turns[:ipc.Buckets] {
			sum += n
		}
		if sum == 0 || turns[ipc.Buckets] == 0 {
			t.Errorf("%d turns, which took %d ns", sum, turns[ipc.Buckets])
		}
		if h := &w.l.figures.histograms[ipc.HistogramAnswer]; answers[ipc.Bucket(3000)] == 0 || answers[ipc.Bucket(3000)] != h.buckets[ipc.Bucket(3000)] || answers[ipc.Buckets] != h.sum {
			t.Errorf("answers took %d", answers)
		}
	}
}

// TestFlowsListed: all flows of all tables are told of once, whatever the pieces, and
// an answer looks at a bounded number of places.
func TestFlowsListed(t *testing.T) {
	w := &world{t: t, r: rand.New(rand.NewPCG(1, 1)), fixture: *newFixtureFor(t, ipc.LinkTap, 1500, true, 6000), peer: -1}
	defer w.hangUp()
	w.clock()
	w.connectLink()
	w.turn()
	const n = 2*placesPerAnswer + 100
	var pkt packet.Packet
	input := func(proto uint8, port uint16) {
		b := make([]byte, 200)
		e := packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest4, Dst: remote4, TTL: 64}
		switch proto {
		case ipc.ProtoTCP:
			b = b[:packet.PutTCP(b, &e, &packet.TCPFields{SrcPort: port, DstPort: 80, Flags: packet.SYN, WScale: -1}, 0, &w.l.none)]
		case ipc.ProtoUDP:
			b = b[:packet.PutUDPFull(b, &e, port, 80, []byte("hello"))]
		default:
			b = b[:packet.PutEcho(b, &e, true, port, 1, []byte("hello"))]
		}
		w.l.none = packet.Offload{}
		if err := pkt.Decode(b); err != nil {
			t.Fatal(err)
		}
		switch proto {
		case ipc.ProtoTCP:
			var s packet.TCP
			if err := s.Decode(pkt.Payload()); err != nil {
				t.Fatal(err)
			}
			w.l.tcp.Input(&pkt, &s)
		case ipc.ProtoUDP:
			var u packet.UDP
			if err := u.Decode(pkt.Payload()); err != nil {
				t.Fatal(err)
			}
			w.l.udp.Input(&pkt, &packet.Offload{}, &u)
		default:
			var u packet.Echo
			if err := u.Decode(pkt.Payload()); err != nil {
				t.Fatal(err)
			}
			w.l.icmp.Input(&pkt, &packet.Offload{}, &u)
		}
	}
	for port := range uint16(n) {
		input(ipc.ProtoTCP, 1000+port)
	}
	for port := range uint16(50) {
		input(ipc.ProtoUDP, 1000+port)
		input(ipc.ProtoICMP, 1000+port)
	}
	made := map[uint8]int{ipc.ProtoTCP: w.l.tcp.Len(), ipc.ProtoUDP: w.l.udp.Len(), ipc.ProtoICMP: w.l.icmp.Len()}
	if made[ipc.ProtoTCP] != n || made[ipc.ProtoUDP] != 50 || made[ipc.ProtoICMP] != 50 {
		t.Fatalf("flows of each protocol: %v", made)
	}
	for _, most := range []uint8{1, 7, ipc.MaxFigures} {
		seen := map[uint8]map[uint16]bool{ipc.ProtoTCP: {}, ipc.ProtoUDP: {}, ipc.ProtoICMP: {}}
		for _, f := range w.all(ipc.AskFlows, most) {
			if seen[f.Proto][f.GuestPort] || f.Guest != guest4 || f.Remote != remote4 {
				t.Fatalf("%+v, seen %t", f, seen[f.Proto][f.GuestPort])
			}
			seen[f.Proto][f.GuestPort] = true
		}
		for proto, want := range made {
			if len(seen[proto]) != want {
				t.Errorf("%d at a time: %d flows of protocol %d, want %d", most, len(seen[proto]), proto, want)
			}
		}
	}
	w.all(ipc.AskFigures, ipc.MaxFigures)
	if g := w.curious.figures[ipc.FirstGauge:]; int(g[ipc.GaugeTCP]) != made[ipc.ProtoTCP] || int(g[ipc.GaugeEcho]) != made[ipc.ProtoICMP] {
		t.Errorf("gauges %v, flows %v", g[:ipc.NumGauges], made)
	}
	// Nobody there, but many places: an answer ends before it has looked at all.
	w.l.tcp.Close()
	w.question(ipc.AskFlows, 0, ipc.MaxFigures)
	w.turn()
	if got := int(w.curious.next); got != placesPerAnswer {
		t.Errorf("an answer goes on at %d, want %d", got, placesPerAnswer)
	}
}

// TestAnswerWaits: where the channel takes no more, the answer comes later, whole and
// once; and a second question meanwhile ends the lane, since no broker asks it.
func TestAnswerWaits(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true)
	w.turn()
	fill := make([]byte, ipc.EventSize)
	(&ipc.Event{Code: ipc.EventLinkFailed}).Encode(fill)
	for w.l.channel.send(fill) == 0 {
	}
	w.question(ipc.AskFigures, 0, ipc.MaxFigures)
	for range 3 {
		w.l.turn() // nothing is heard: the channel stays full
		w.sleep(answerRetry)
	}
	if !w.l.figures.owed || w.curious.answers != 0 {
		t.Fatal("the answer was given up")
	}
	var rec [ipc.AskSize]byte
	w.curious.ask.Encode(rec[:])
	if err := w.l.ask(rec[:]); !errors.Is(err, ipc.ErrMalformed) {
		t.Errorf("a second question: %v", err)
	}
	w.hear()
	w.sleep(answerRetry)
	w.turn()
	if w.curious.waiting || w.curious.answers != 1 || w.l.figures.owed {
		t.Errorf("waiting %t, %d answers", w.curious.waiting, w.curious.answers)
	}
}

// TestCuriousWorlds: whoever asks all the time gets answers, changes nothing for
// anybody, and has nothing allocated.
func TestCuriousWorlds(t *testing.T) {
	answers := 0
	for s := range uint64(25) {
		t.Run("", func(t *testing.T) {
			w := randomWorld(t, rand.NewPCG(s, 13))
			w.curious.always = true
			w.counting = s%4 == 0
			w.live()
			w.curious.always = false
			for k := 0; w.curious.waiting; k++ {
				if k == 100 {
					t.Fatal("no answer")
				}
				w.sleep(answerRetry)
				w.turn()
			}
			answers += w.curious.answers
			if w.allocs > 20 { // a new thread of the runtime's costs six
				t.Errorf("seed %d: %d allocations in the lane's turns", s, w.allocs)
			}
		})
	}
	if answers < 1000 {
		t.Errorf("only %d answers", answers)
	}
}
