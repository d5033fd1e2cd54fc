// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// flowsOf lists the flows of the only instance, as its status socket tells them.
func flowsOf(t *testing.T, lab *netlab.Lab) []api.Flow {
	t.Helper()
	st, out := aldentectl(t, lab, netlab.Nobody, "flows", "--json")
	var r struct {
		Flows []api.Flow `json:"flows"`
	}
	if err := json.Unmarshal([]byte(out), &r); st != 0 || err != nil {
		t.Fatalf("flows: status %d, %v: %s", st, err, out)
	}
	return r.Flows
}

// counterOf is a counter of the only instance, summed over those whose labels hold what
// is wanted.
func counterOf(t *testing.T, lab *netlab.Lab, name string, labels map[string]string) (sum float64) {
	t.Helper()
	st, out := aldentectl(t, lab, netlab.Nobody, "metrics", "--json")
	var r api.CountersReply
	if err := json.Unmarshal([]byte(out), &r); st != 0 || err != nil || len(r.Counters) == 0 {
		t.Fatalf("counters: status %d, %v: %s", st, err, out)
	}
next:
	for _, c := range r.Counters {
		if c.Name == name {
			for k, v := range labels {
				if c.Labels[k] != v {
					continue next
				}
			}
			sum += c.Value
		}
	}
	return sum
}

// thereAndBack sends n bytes at a time, some times, and reads them again.
func thereAndBack(t *testing.T, c net.Conn, n, times int) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, n)
	for range times {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlowsShown: the status socket shows each kind of flow there is, by the link and
// past it, from both sides, in both families, with what it has moved and its rule.
func TestFlowsShown(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "ping")
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001", "-T", "10002", "-u", "10003", "-U", "10004", "--allow", "tcp:any:7", "--allow", "udp:any:9")
	type want struct {
		protocol, direction, state, guest, remote string // of the addresses: how they end
		bytes, packets                            uint64 // each way; of packets: at least, for TCP
		rule                                      string
	}
	var wants []want
	for _, f := range families {
		go netlab.Echo(lab.Remote.Listen("tcp", f.at(f.remote, "7")))
		go netlab.EchoUDP(lab.Remote.ListenUDP("udp", f.at(f.remote, "9")))
		go netlab.Echo(g.NS.Listen("tcp"+f.flag[1:], f.any+":10001"))
		go netlab.Echo(lab.Host.Listen("tcp", f.at(f.lo, "10002")))
		go netlab.EchoUDP(g.NS.ListenUDP("udp"+f.flag[1:], f.any+":10003"))
		go netlab.EchoUDP(lab.Host.ListenUDP("udp", f.at(f.lo, "10004")))
		for _, d := range []struct {
			from               *netlab.NS
			network, to        string
			n, times           int
			direction, service string
			rule               string
		}{
			{g.NS, "tcp", f.at(f.remote, "7"), 5000, 3, "out", "remote", "--allow tcp:any:7"},
			{g.NS, "udp", f.at(f.remote, "9"), 100, 4, "out", "remote", "--allow udp:any:9"},
			{lab.Remote, "tcp", f.at(f.host, "10001"), 3000, 2, "in", "guest", "-t 10001"},
			{lab.Remote, "udp", f.at(f.host, "10003"), 70, 5, "in", "guest", "-u 10003"},
			{lab.Host, "tcp", f.at(f.lo, "10001"), 90_000, 2, "bypass-in", "guest", "-t 10001"},
			{lab.Host, "udp", f.at(f.lo, "10003"), 60, 6, "bypass-in", "guest", "-u 10003"},
			{g.NS, "tcp", f.at(f.lo, "10002"), 80_000, 2, "bypass-out", "remote", "-T 10002"},
			{g.NS, "udp", f.at(f.lo, "10004"), 50, 7, "bypass-out", "remote", "-U 10004"},
		} {
			c := d.from.Dial(d.network, d.to)
			defer c.Close()
			thereAndBack(t, c, d.n, d.times)
			w := want{protocol: d.network, direction: d.direction, state: "open", bytes: uint64(d.n * d.times), packets: uint64(d.times), rule: d.rule}
			if d.network == "tcp" {
				w.state = "ESTABLISHED"
			}
			_, clientPort, _ := net.SplitHostPort(c.LocalAddr().String())
			_, servicePort, _ := net.SplitHostPort(d.to)
			if w.guest, w.remote = ":"+servicePort, ":"+clientPort; d.service == "remote" {
				w.guest, w.remote = ":"+clientPort, ":"+servicePort
			}
			wants = append(wants, w)
		}
		// 56 bytes of data, and eight of echo's header.
		if st, out := g.Run("ping", "-c", "3", "-i", "0.2", "-s", "56", f.remote); st == 0 {
			wants = append(wants, want{protocol: "icmp", direction: "out", state: "open", remote: f.remote, bytes: 3 * 64, packets: 3})
		} else if !strings.Contains(out, "0 received") {
			t.Errorf("ping: %s", out)
		}
	}
	flows := flowsOf(t, lab)
	for _, w := range wants {
		found := 0
		for _, f := range flows {
			if f.Protocol != w.protocol || f.Direction != w.direction || !strings.HasSuffix(f.Guest, w.guest) || !strings.HasSuffix(f.Remote, w.remote) {
				continue
			}
			found++
			bypass := w.protocol == "tcp" && strings.HasPrefix(w.direction, "bypass")
			exact := w.protocol != "tcp"
			if f.State != w.state || f.Rule != w.rule || f.Sent != w.bytes || f.Received != w.bytes || f.Queued != 0 || f.Age < f.Idle || f.Age <= 0 || f.Age > 600 ||
				exact && (f.SentPackets != w.packets || f.ReceivedPackets != w.packets) ||
				!exact && !bypass && (f.SentPackets < w.packets || f.ReceivedPackets < w.packets) || w.protocol == "tcp" && f.RTT <= 0 {
				t.Errorf("%+v: %+v", w, f)
			}
		}
		if found != 1 {
			t.Errorf("%d flows are %+v:\n%s", found, w, indented(flows))
		}
	}
	for protocol, n := range map[string]float64{"tcp": 4, "udp": 4, "bypass_tcp": 4, "bypass_udp": 4} {
		if got := counterOf(t, lab, "flows", map[string]string{"protocol": protocol}); got < n {
			t.Errorf("%v flows of %s, want %v at least", got, protocol, n)
		}
	}
}

func indented(flows []api.Flow) (s string) {
	for _, f := range flows {
		s += fmt.Sprintf("%+v\n", f)
	}
	return s
}

// TestCountersSurvive: what was counted is not lost with the worker that has, as far as
// somebody has asked; flows are.
func TestCountersSurvive(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	g := lab.Guest()
	opened := map[string]string{"protocol": "tcp", "event": "opened"}
	for range 3 {
		if _, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "hello"); err != nil {
			t.Fatal(err)
		}
	}
	if n := counterOf(t, lab, "flow_events_total", opened); n != 3 {
		t.Fatalf("%v connections, want 3", n)
	}
	if n := counterOf(t, lab, "sockets_opened_total", map[string]string{"kind": "tcp_connecting"}); n != 3 {
		t.Errorf("the broker counts %v", n)
	}
	old := instanceSays(t, lab, netlab.Nobody).WorkerPID
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !eventually(20*time.Second, func() bool {
		s := instanceSays(t, lab, netlab.Nobody)
		return s.WorkerPID != 0 && s.WorkerPID != old && counterOf(t, lab, "worker_up", nil) == 1
	}) {
		t.Fatal("no new worker answers")
	}
	if n := counterOf(t, lab, "flow_events_total", opened); n != 3 {
		t.Errorf("%v connections afterwards, want 3", n)
	}
	if _, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "hello"); err != nil {
		t.Fatal(err)
	}
	if n := counterOf(t, lab, "flow_events_total", opened); n != 4 {
		t.Errorf("%v connections, want 4", n)
	}
	if n := counterOf(t, lab, "worker_restarts_total", nil); n != 1 {
		t.Errorf("%v workers were replaced", n)
	}
}

// TestFiguresLie: whatever a captured worker says of its figures, who has asked gets
// an answer or is told why not, in plain characters and in bounded time; what is
// malformed, or was not asked for, is its end, and the broker lives.
func TestFiguresLie(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, tt := range []struct {
		how   string
		lives bool
	}{{"absurd", true}, {"endless", true}, {"silence", true}, {"more", false}, {"other", false}, {"circles", false}, {"unasked", false}} {
		t.Run(tt.how, func(t *testing.T) {
			script := "figures=" + tt.how
			if tt.how == "silence" {
				script = "sleep=1ms"
			}
			g := hostileGuest(t, lab, script)
			before := vitals(t, g.Proc.PID)
			for _, command := range []string{"flows", "counters"} {
				began := time.Now()
				c := dialStatus(t, lab, g)
				_, _ = fmt.Fprintf(c, `{"version":1,"command":%q}`+"\n", command)
				n, err := io.Copy(checkLines{t}, io.LimitReader(c, api.MaxReply)) // more no client of ours reads
				c.Close()
				t.Logf("%s: %d bytes in %v", command, n, time.Since(began))
				if took := time.Since(began); took > 45*time.Second || n == 0 || err != nil {
					t.Errorf("%s: %d bytes in %v, %v", command, n, took, err)
				}
			}
			if tt.lives {
				if strings.Contains(g.Proc.Output(), "worker ended") {
					t.Errorf("the worker has ended:\n%s", g.Proc.Output())
				}
			} else if cause := ended(t, g); !strings.Contains(cause, "killed by the broker: malformed record") {
				t.Errorf("cause %q", cause)
			}
			if g.Proc.Exited() {
				t.Fatal("the broker is gone")
			}
			// A worker that is about to start takes a few descriptors.
			if after := vitals(t, g.Proc.PID); after.fds > before.fds+16 || after.rss > before.rss+64<<10 {
				t.Errorf("%+v before, %+v after", before, after)
			}
		})
	}
}

// checkLines is where an answer goes that has to be printable.
type checkLines struct{ t *testing.T }

func (c checkLines) Write(b []byte) (int, error) {
	for _, ch := range b {
		if ch != '\n' && (ch < ' ' || ch > '~') {
			c.t.Fatalf("a character %#x", ch)
		}
	}
	return len(b), nil
}

// dialStatus connects to the status socket of a guest's instance, as root.
func dialStatus(t *testing.T, lab *netlab.Lab, g *netlab.Guest) net.Conn {
	t.Helper()
	c, err := lab.Host.DialError("unix", fmt.Sprintf("@%s%d", api.Prefix, g.Proc.PID), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c
}
