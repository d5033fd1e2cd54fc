// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"bytes"
	"log/slog"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/limiter"
	"aldente/ipc"
)

// made is a log with a clock of its own, and what it has said.
func made(o Options) (l *Log, now *time.Time, said *bytes.Buffer) {
	now, said = new(time.Time), new(bytes.Buffer)
	*now = time.Unix(1000, 0)
	o.Logger = slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	if o.Max == 0 {
		o.Max = 100
	}
	if o.Rate == (limiter.Rate{}) {
		o.Rate.PerSecond = -1
	}
	o.Guest = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	l = New(o)
	l.now = func() time.Time { return *now }
	return l, now, said
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var example = Flow{Proto: ipc.ProtoTCP, Direction: "out", Guest: at("192.0.2.1:4000"), Remote: at("192.0.2.9:80"), To: at("192.0.2.9:80"), Rule: "--allow any"}

// TestLines: what each event is told as.
func TestLines(t *testing.T) {
	const head = `protocol=tcp direction=out guest=192.0.2.1:4000 remote=192.0.2.9:80 verdict=allowed rule="--allow any" `
	for _, tt := range []struct {
		name string
		do   func(l *Log, now *time.Time)
		want string
	}{
		{"ended", func(l *Log, now *time.Time) {
			l.Opened(1, example)
			*now = now.Add(1234567 * time.Microsecond)
			l.Ended(&ipc.Ended{Token: 1, How: ipc.EndReset, Sent: 5, Received: 6, SentPackets: 2, ReceivedPackets: 3})
			l.Gone(Lost)
		}, `level=INFO msg="flow ended" ` + head + `sent=5 received=6 sent_packets=2 received_packets=3 seconds=1.235 end=reset`},
		{"not known", func(l *Log, _ *time.Time) { l.Ended(&ipc.Ended{Token: 1, How: ipc.EndClosed}) }, ""},
		{"lost", func(l *Log, now *time.Time) { l.Opened(1, example); l.Gone(Lost); l.Gone(Stopped) },
			`level=INFO msg="flow ended" ` + head + `seconds=0.000 end=lost`},
		{"the clock was set back", func(l *Log, now *time.Time) {
			l.Opened(1, example)
			*now = now.Add(-time.Hour)
			l.Gone(Stopped)
		}, `level=INFO msg="flow ended" ` + head + `seconds=0.000 end=stopped`},
		{"refused", func(l *Log, _ *time.Time) {
			f := example
			f.Rule = "--deny tcp:any:80"
			l.Refused(f, "egress rules")
		}, `level=INFO msg="flow refused" protocol=tcp direction=out guest=192.0.2.1:4000 remote=192.0.2.9:80 verdict=refused rule="--deny tcp:any:80" reason="egress rules"`},
		{"failed", func(l *Log, _ *time.Time) { l.Failed(example, unix.ENETUNREACH) },
			`level=INFO msg="flow failed" ` + head + `end=failed error="network is unreachable"`},
		{"elsewhere", func(l *Log, _ *time.Time) {
			f := example
			f.To = at("127.0.0.1:53")
			l.Refused(f, "egress rules")
		}, `level=INFO msg="flow refused" protocol=tcp direction=out guest=192.0.2.1:4000 remote=192.0.2.9:80 to=127.0.0.1:53 verdict=refused rule="--allow any" reason="egress rules"`},
		{"to the guest", func(l *Log, _ *time.Time) {
			l.Opened(1, Flow{Proto: ipc.ProtoUDP, Direction: "in", Guest: netip.AddrPortFrom(netip.Addr{}, 53), Remote: at("[2001:db8::9]:999"), Rule: "-u 53"})
			l.Gone(Lost)
		}, `level=INFO msg="flow ended" protocol=udp direction=in guest=[2001:db8::1]:53 remote=[2001:db8::9]:999 verdict=allowed rule="-u 53" seconds=0.000 end=lost`},
		{"echo", func(l *Log, _ *time.Time) {
			l.Opened(1, Flow{Proto: ipc.ProtoICMPv6, Direction: "out", Guest: at("[2001:db8::1]:7"), Remote: at("[2001:db8::9]:0")})
			l.Ended(&ipc.Ended{Token: 1, How: ipc.EndIdle})
		}, `level=INFO msg="flow ended" protocol=icmp direction=out guest=[2001:db8::1]:7 remote=2001:db8::9 verdict=allowed rule="" sent=0 received=0 sent_packets=0 received_packets=0 seconds=0.000 end=idle`},
		{"nothing known", func(l *Log, _ *time.Time) {
			l.guest = [2]netip.Addr{}
			l.Refused(Flow{Proto: ipc.ProtoTCP, Direction: "in"}, "x")
		},
			`level=INFO msg="flow refused" protocol=tcp direction=in guest=:0 remote=:0 verdict=refused rule="" reason=x`},
	} {
		l, now, said := made(Options{})
		tt.do(l, now)
		if got := strings.TrimSuffix(said.String(), "\n"); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}

// TestNoneIsHidden: a worker that tells nothing of a flow's end, or opens another by
// the same name, or more than are remembered, has it told of all the same.
func TestNoneIsHidden(t *testing.T) {
	l, _, said := made(Options{Max: 3})
	for token := range uint64(10) {
		l.Opened(token, example)
		l.Opened(0, example)
	}
	if len(l.open) != 3 {
		t.Errorf("%d are remembered", len(l.open))
	}
	l.Gone(Lost)
	out := said.String()
	if n := strings.Count(out, "end=untold"); n != 20-3 {
		t.Errorf("%d of which nothing was told, want 17:\n%s", n, out)
	}
	if n := strings.Count(out, "end=lost"); n != 3 || len(l.open) != 0 {
		t.Errorf("%d lost, %d left", n, len(l.open))
	}
}

// TestBounds: lines are as many as the rate has, and those that are left out are
// counted.
func TestBounds(t *testing.T) {
	l, now, said := made(Options{Rate: limiter.Rate{PerSecond: 10, Burst: 50}})
	for range 1000 {
		l.Refused(example, "egress rules")
	}
	*now = now.Add(time.Second)
	l.Refused(example, "egress rules")
	l.Opened(1, example)
	for range 20 {
		l.Refused(example, "egress rules")
	}
	l.Gone(Stopped)
	out := said.String()
	if n := strings.Count(out, `msg="flow refused"`); n != 60 {
		t.Errorf("%d lines, want 60", n)
	}
	sum := 0
	for _, m := range regexp.MustCompile(`level=WARN msg="lines about flows are left out" count=(\d+)`).FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	if sum != 1021+1-60 {
		t.Errorf("%d are said to be left out, want %d:\n%s", sum, 1021+1-60, out)
	}
}

// TestSetGuest: a flow whose side of the guest's is not known has the address that the guest
// had when it began.
func TestSetGuest(t *testing.T) {
	l, _, said := made(Options{})
	f := example
	f.Guest = netip.AddrPortFrom(netip.Addr{}, 22)
	l.Opened(1, f)
	l.SetGuest([2]netip.Addr{netip.MustParseAddr("10.0.0.2")})
	l.Opened(2, f)
	l.Ended(&ipc.Ended{Token: 1, How: ipc.EndGone})
	l.Ended(&ipc.Ended{Token: 2, How: ipc.EndClosed})
	if first, second, _ := strings.Cut(said.String(), "\n"); !strings.Contains(first, "guest=192.0.2.1:22 ") || !strings.Contains(second, "guest=10.0.0.2:22 ") {
		t.Error(said)
	}
}
