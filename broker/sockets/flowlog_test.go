// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/broker/flowlog"
	"aldente/broker/limiter"
	"aldente/ipc"
)

// told has a factory's flow log write to what is returned.
func told(w *atWork) *lockedBuffer {
	b := &lockedBuffer{}
	w.cfg().Flows = flowlog.New(flowlog.Options{Logger: slog.New(slog.NewTextHandler(b, nil)), Max: 100, Rate: limiter.Rate{PerSecond: -1}})
	return b
}

// TestFlowsTold: verdicts and addresses are the factory's, whatever a worker says of
// how flows have ended.
func TestFlowsTold(t *testing.T) {
	tcp, udp := servers(t, "127.0.0.1"), uint16(9)
	open := func(proto uint8, dst string, port uint16) ipc.Open {
		return ipc.Open{Proto: proto, Src: as16("10.0.0.1"), SrcPort: 4000, Dst: as16(dst), DstPort: port}
	}
	const head = `guest=10\.0\.0\.1:4000 remote=`
	for _, tt := range []struct {
		name  string
		rules []egress.Rule
		o     ipc.Open
		want  string
	}{
		{"allowed, TCP", []egress.Rule{{Allow: true, Dest: "tcp:any"}}, open(ipc.ProtoTCP, "192.0.2.77", tcp),
			`msg="flow ended" protocol=tcp direction=out ` + head + `192\.0\.2\.77:\d+ to=127\.0\.0\.1:\d+ verdict=allowed rule="--allow tcp:any" sent=1 .* end=idle`},
		{"allowed by no rule, UDP", nil, open(ipc.ProtoUDP, "192.0.2.77", udp),
			`msg="flow ended" protocol=udp direction=out ` + head + `192\.0\.2\.77:9 to=127\.0\.0\.1:9 verdict=allowed rule="" sent=1 .* end=idle`},
		{"denied", []egress.Rule{{Dest: "udp:any"}}, open(ipc.ProtoUDP, "192.0.2.77", udp),
			`msg="flow refused" protocol=udp direction=out ` + head + `192\.0\.2\.77:9 to=127\.0\.0\.1:9 verdict=refused rule="--deny udp:any" reason="egress rules"`},
		{"loopback", nil, open(ipc.ProtoTCP, "127.0.0.1", tcp), `msg="flow refused" protocol=tcp direction=out ` + head + `127\.0\.0\.1:\d+ verdict=refused rule="" reason=loopback`},
		{"multicast", nil, open(ipc.ProtoUDP, "224.0.0.1", 1), `msg="flow refused" .* reason=multicast`},
		{"no port", nil, open(ipc.ProtoUDP, "192.0.2.9", 0), `msg="flow refused" .* reason="no port"`},
		{"refused by the host", nil, open(ipc.ProtoTCP, "192.0.2.77", 1), `msg="flow (failed|ended)" protocol=tcp .* verdict=allowed .*`},
		{"far end", nil, ipc.Open{Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: 1, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1"), DstPort: 5000},
			`msg="flow ended" protocol=tcp direction=bypass-in guest=127\.0\.0\.1:\d+ remote=127\.0\.0\.1:5000 verdict=allowed rule="-t 10001" sent=1 .* end=idle`},
		{"far end on the host", nil, ipc.Open{Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: 2, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1"), DstPort: 5000},
			`msg="flow ended" protocol=tcp direction=bypass-out guest=127\.0\.0\.1:5000 remote=127\.0\.0\.1:\d+ verdict=allowed rule="-T 10002" sent=1 .* end=idle`},
	} {
		for _, spare := range []bool{true, false} {
			w := work(t, tt.rules...)
			said := told(w)
			w.cfg().LoToLo = true
			w.SetNamespace(&homeNamespace{spare: spare}, 0)
			w.Adopt(Listener{Proto: ipc.ProtoTCP, Splice: true, Port: 10001, GuestPort: tcp, FD: -1})
			w.Adopt(Listener{Proto: ipc.ProtoTCP, Namespace: true, Port: 10002, GuestPort: tcp, FD: -1})
			_, fd := w.ask(t, tt.o)
			if fd >= 0 {
				unix.Close(fd)
			}
			ended := make([]byte, ipc.EndedSize)
			(&ipc.Ended{Token: 42, How: ipc.EndIdle, Sent: 1}).Encode(ended)
			// Told twice, and of one that is not known: once is enough.
			all := append(append(append([]byte(nil), ended...), ended...), ended...)
			all[2*ipc.EndedSize+ipc.HeaderSize]++
			if err := ipc.Send(w.worker, all, -1); err != nil {
				t.Fatal(err)
			}
			unix.Shutdown(w.worker, unix.SHUT_WR)
			_ = w.end(t)
			if out := said.String(); strings.Count(out, "\n") != 1 || !regexp.MustCompile(`level=INFO `+tt.want+`\n$`).MatchString(out) {
				t.Errorf("%s, spare %v:\n%s\nwant %s", tt.name, spare, out, tt.want)
			}
		}
	}
}

// TestAcceptedTold: connections that came by a listener, of which a worker tells, are
// told of as they end, or are lost with it. The port and the rule are the listener's.
func TestAcceptedTold(t *testing.T) {
	w := work(t)
	said := told(w)
	l := w.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 10001, GuestPort: 80, FD: -1})
	a := make([]byte, 2*ipc.AcceptedSize)
	(&ipc.Accepted{Token: 1, Listener: l.ID, Port: 999, Addr: as16("192.0.2.9")}).Encode(a)
	(&ipc.Accepted{Token: 2, Listener: 99, Port: 999, Addr: as16("2001:db8::9")}).Encode(a[ipc.AcceptedSize:])
	if err := ipc.Send(w.worker, a, -1); err != nil {
		t.Fatal(err)
	}
	unix.Shutdown(w.worker, unix.SHUT_WR)
	_ = w.end(t)
	out := said.String()
	for _, want := range []string{`direction=in guest=:80 remote=192.0.2.9:999 verdict=allowed rule="-t 10001" seconds=`, `guest=:0 remote=[2001:db8::9]:999 verdict=allowed rule="" `} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if n := strings.Count(out, "end=lost"); n != 2 {
		t.Errorf("%d lost:\n%s", n, out)
	}
}

// TestLateFlowsTold: a socket of the namespace that comes when the worker is gone is
// nobody's flow, and none of the next worker's, which may use the token again.
func TestLateFlowsTold(t *testing.T) {
	port := servers(t, "127.0.0.1")
	w := work(t)
	said := told(w)
	w.cfg().LoToLo = true
	ns := &homeNamespace{late: make(chan func(), 1)}
	w.SetNamespace(ns, 0)
	l := w.Adopt(Listener{Proto: ipc.ProtoTCP, Splice: true, Port: 10001, GuestPort: port, FD: -1})
	o := ipc.Open{Token: 42, Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: l.ID, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1"), DstPort: 5000}
	if err := ipc.Send(w.worker, encode(o), -1); err != nil {
		t.Fatal(err)
	}
	answer := <-ns.late
	unix.Shutdown(w.worker, unix.SHUT_WR)
	_ = w.end(t)
	answer()
	w.cfg().Flows.Gone(flowlog.Lost)
	if out := said.String(); out != "" {
		t.Errorf("told of a flow that nobody has:\n%s", out)
	}
}

// TestFlowsUnasked: without a flow log no worker of ours tells of flows.
func TestFlowsUnasked(t *testing.T) {
	ended, accepted := make([]byte, ipc.EndedSize), make([]byte, ipc.AcceptedSize)
	(&ipc.Ended{Token: 7, How: ipc.EndReset}).Encode(ended)
	(&ipc.Accepted{Token: 8, Listener: 1, Port: 9}).Encode(accepted)
	for _, b := range [][]byte{ended, accepted} {
		w := work(t)
		w.cfg().Flows = nil
		if _, err := unix.Write(w.worker, b); err != nil {
			t.Fatal(err)
		}
		if err := w.end(t); !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%v", err)
		}
	}
}

// TestLimitsTold: what is over the budget is refused for that.
func TestLimitsTold(t *testing.T) {
	w, _ := workWithin(t, func(l *budget.Limits) { l.UDP = 4 })
	said := told(w)
	fds, _ := w.requests(t, toLoopback(ipc.ProtoUDP, false, 9), 10)
	defer closeAll(fds)
	for end := time.Now().Add(5 * time.Second); !strings.Contains(said.String(), `verdict=refused rule="" reason="limit on flows"`); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not told:\n%s", said)
		}
	}
}
