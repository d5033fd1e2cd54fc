// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"strings"
	"testing"

	"aldente/broker/limiter"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want func(*Limits)
	}{
		{[]string{"udp=100"}, func(l *Limits) { l.UDP = 100 }},
		{[]string{"udp=100,udp=7"}, func(l *Limits) { l.UDP = 7 }},
		{[]string{"udp=100", "icmp=3,half-open=4"}, func(l *Limits) { l.UDP, l.Echo, l.HalfOpen = 100, 3, 4 }},
		{[]string{"new=50/s"}, func(l *Limits) { l.NewTCP = limiter.Rate{PerSecond: 50, Burst: 400} }},
		{[]string{"new=50"}, func(l *Limits) { l.NewTCP = limiter.Rate{PerSecond: 50, Burst: 400} }},
		{[]string{"new=5000"}, func(l *Limits) { l.NewTCP = limiter.Rate{PerSecond: 5000, Burst: 5000} }},
		{[]string{"new-udp=none"}, func(l *Limits) { l.NewUDP = limiter.Rate{PerSecond: Unlimited, Burst: Unlimited} }},
		{[]string{"conns=10,new-conns=7/s"}, func(l *Limits) { l.Conns, l.NewConns = 10, limiter.Rate{PerSecond: 7, Burst: 7} }},
		{[]string{"bytes=1500k/s"}, func(l *Limits) { l.Bytes = 1_500_000 }},
		{[]string{"bytes=2G"}, func(l *Limits) { l.Bytes = 2_000_000_000 }},
		{[]string{"sockets=1000"}, func(l *Limits) { l.Sockets = 1000 }},
		{[]string{"sockets=1000000"}, func(l *Limits) { l.Sockets = host.Descriptors }},
		{[]string{"none"}, func(l *Limits) {
			none := limiter.Rate{PerSecond: Unlimited, Burst: Unlimited}
			*l = Limits{host.Descriptors, Unlimited, Unlimited, Unlimited, host.Descriptors / 2, none, none, Unlimited, none, Unlimited}
		}},
		{[]string{"none", "udp=9"}, func(l *Limits) {
			none := limiter.Rate{PerSecond: Unlimited, Burst: Unlimited}
			*l = Limits{host.Descriptors, 9, Unlimited, mostReplies, host.Descriptors / 2, none, none, Unlimited, none, Unlimited}
		}},
	} {
		c := Change{}
		for _, a := range tt.args {
			if err := c.Parse(a); err != nil {
				t.Errorf("%v: %v", tt.args, err)
			}
		}
		want := Defaults(host)
		tt.want(&want)
		if got := Defaults(host).With(c, host); got != want {
			t.Errorf("%v: %+v, want %+v", tt.args, got, want)
		}
	}
	for _, bad := range []string{"", "udp", "udp=", "udp=0", "udp=-1", "udp=+1", "udp=x", "udp=1/s", "new=1/m", "tcp=3", "=3", "udp=3,",
		"udp=9999999999999999999", "sockets=10", "none=3", "udp=1 ", "UDP=3", "bytes=999", "bytes=1T", "bytes=2000G", "bytes=k", "udp=1k", "conns=0", "conns=3/s", "new-conns=0", "bytes=-1k"} {
		if err := (Change{}).Parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than a line: %v", bad, err)
		}
	}
}

// TestDefaults: on hosts of any size, limits can be kept and leave others some.
func TestDefaults(t *testing.T) {
	for _, descriptors := range []int{64, 256, 1024, 4096, 20000, 1 << 20} {
		for _, ephemeral := range []int{10, 1000, 16384, 28232, 64511} {
			for _, conntrack := range []int{0, 8192, 262144, 4 << 20} {
				h := Host{descriptors, ephemeral, conntrack}
				l := Defaults(h)
				if l.Sockets < 1 || l.Sockets > descriptors || l.HalfOpen < 1 || l.HalfOpen > descriptors/2 ||
					l.NewTCP.PerSecond < 1 || l.NewTCP.Burst < l.NewTCP.PerSecond || l.NewUDP.PerSecond < 1 || l.NewUDP.Burst < l.NewUDP.PerSecond ||
					ephemeral >= 1000 && 4*l.UDP > ephemeral*4/5+4 && l.UDP > enoughPorts || l.WorkerUDP() < 1 || l.WorkerUDP() > l.UDP ||
					(l.Conns == Unlimited) != (conntrack == 0 || max(conntrack/2, leastConns) >= l.Sockets) || conntrack > 10000 && l.Conns > conntrack/2 {
					t.Errorf("%+v: %+v", h, l)
				}
				if l.With(Change{}, h) != l {
					t.Errorf("%+v: defaults change by no change: %+v", h, l.With(Change{}, h))
				}
			}
		}
	}
}
