// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// viewed is what "flows --json" says of a flow, as far as tests ask.
type viewed struct {
	Protocol, Direction, State, Guest, Remote, Rule string
	Age, Idle, RTT                                  float64
	Sent, Received                                  uint64
	SentRate                                        float64 `json:"sent_rate"`
	ReceivedRate                                    float64 `json:"received_rate"`
}

// viewFlows is the flows that some arguments choose.
func viewFlows(t *testing.T, lab *netlab.Lab, args ...string) []viewed {
	t.Helper()
	var r struct{ Flows []viewed }
	if st, out := view(lab, append([]string{"flows", "--json"}, args...)...); st != 0 || json.Unmarshal([]byte(out), &r) != nil {
		t.Fatalf("flows %v: status %d\n%s", args, st, out)
	}
	return r.Flows
}

// busyGuest is a guest with flows of all protocols, one of which moves data without
// end towards it.
func busyGuest(t *testing.T, lab *netlab.Lab, args ...string) *netlab.Guest {
	l := lab.Remote.Listen("tcp", "198.51.100.9:80")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 16<<10)
				for {
					if _, err := c.Write(b); err != nil {
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			}()
		}
	}()
	go netlab.Echo(lab.Remote.Listen("tcp", "[2001:db8:2::9]:443"))
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "198.51.100.9:53"))
	g := lab.Guest(args...)
	bulk := g.Dial("tcp", "198.51.100.9:80")
	go func() { _, _ = io.Copy(io.Discard, bulk) }()
	for _, at := range []struct{ network, addr string }{{"tcp", "[2001:db8:2::9]:443"}, {"udp", "198.51.100.9:53"}} {
		c := g.Dial(at.network, at.addr)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := fmt.Fprint(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Cleanup(func() { bulk.Close() })
	return g
}

// TestFlowsByRule: the table says of a flow by which rule it is, of one that is
// refused too.
func TestFlowsByRule(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		go netlab.Echo(lab.Remote.Listen("tcp", f.at(f.remote, "7")))
	}
	g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "-t", "10001",
		"--allow", "tcp:192.0.2.9:7", "--allow", "tcp:[2001:db8:1::9]:7", "--deny", "udp:any"}})
	for _, f := range families {
		go netlab.Echo(g.NS.Listen("tcp"+f.flag[1:], f.any+":10001"))
		out, in := g.Dial("tcp", f.at(f.remote, "7")), lab.Remote.Dial("tcp", f.at(f.host, "10001"))
		defer out.Close()
		defer in.Close()
		thereAndBack(t, out, 10, 1)
		thereAndBack(t, in, 10, 1)
		denied := g.Dial("udp", f.at(f.remote, "9"))
		defer denied.Close()
		table := ""
		if !eventually(20*time.Second, func() bool {
			_, _ = denied.Write([]byte("hello"))
			_, table = view(lab, "flows")
			for _, want := range []string{
				`(?m)^tcp +out .* ` + regexp.QuoteMeta(f.at(f.remote, "7")) + ` .* ` + regexp.QuoteMeta("--allow tcp:"+f.at(f.remote, "7")) + `$`,
				`(?m)^tcp +in .* ` + regexp.QuoteMeta(in.LocalAddr().String()) + ` .* -t 10001$`,
				`(?m)^udp +out +refused .* ` + regexp.QuoteMeta(f.at(f.remote, "9")) + ` .* --deny udp:any$`,
			} {
				if !regexp.MustCompile(want).MatchString(table) {
					return false
				}
			}
			return true
		}) {
			t.Errorf("%s:\n%s", f.flag, table)
		}
	}
}

// TestFlowsOfTraffic: "flows" says of real flows what they are and how fast, and "top"
// and "metrics" say the same.
func TestFlowsOfTraffic(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	busyGuest(t, lab)
	all := viewFlows(t, lab, "--interval", "1")
	find := func(remote string) viewed {
		i := slices.IndexFunc(all, func(f viewed) bool { return f.Remote == remote })
		if i < 0 {
			t.Fatalf("no flow to %s in %+v", remote, all)
		}
		return all[i]
	}
	if f := find("198.51.100.9:80"); f.Protocol != "tcp" || f.Direction != "out" || f.State != "ESTABLISHED" || f.ReceivedRate == 0 || f.Received == 0 ||
		!strings.HasPrefix(f.Guest, "192.0.2.2:") || f.Age <= 0 || f.RTT <= 0 {
		t.Errorf("%+v", f)
	}
	if f := find("[2001:db8:2::9]:443"); f.Sent != 5 || f.Received != 5 || f.ReceivedRate != 0 || !strings.HasPrefix(f.Guest, "[2001:db8:1::2]:") {
		t.Errorf("%+v", f)
	}
	if f := find("198.51.100.9:53"); f.Protocol != "udp" || f.Sent != 5 || f.Received != 5 {
		t.Errorf("%+v", f)
	}
	if all[0].Remote != "198.51.100.9:80" {
		t.Errorf("the fastest comes first, not %+v", all[0])
	}
	if f := viewFlows(t, lab, "--protocol", "udp"); len(f) != 1 {
		t.Errorf("%+v", f)
	}
	if f := viewFlows(t, lab, "--address", "2001:db8:2::/64", "--port", "443"); len(f) != 1 {
		t.Errorf("%+v", f)
	}
	if st, out := view(lab, "flows"); st != 0 || strings.Count(out, "\n") != 4 || !strings.Contains(out, "ESTABLISHED  192.0.2.2:") {
		t.Errorf("status %d\n%s", st, out)
	}
	if st, out := view(lab, "top", "--once"); st != 0 || !strings.Contains(out, "flows 3 (2 tcp, 1 udp)") || !regexp.MustCompile(`down +[1-9][0-9.]* [kM]bit/s`).MatchString(out) {
		t.Errorf("status %d\n%s", st, out)
	}
}
