// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aldente/test/netlab"
)

// usage is what an instance's processes hold.
type usage struct{ fds, rss int64 }

func measure(g *netlab.Guest) (u usage) {
	for _, p := range g.Processes() {
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p))
		u.fds += int64(len(fds))
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		for line := range strings.Lines(string(b)) {
			var kb int64
			if n, _ := fmt.Sscanf(line, "VmRSS: %d", &kb); n == 1 {
				u.rss += kb
			}
		}
	}
	return u
}

// TestSoak opens and closes connections for ALDENTE_SOAK and compares what
// the processes hold with what they held after the first tenth. Without the
// variable it makes a few thousand.
func TestSoak(t *testing.T) {
	heavy(t)
	span := 8 * time.Second
	if s := os.Getenv("ALDENTE_SOAK"); s != "" {
		var err error
		if span, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		go netlab.Echo(lab.Remote.Listen("tcp", f.at(f.remote, "7")))
		go netlab.EchoUDP(lab.Remote.ListenUDP("udp", f.at(f.remote, "7")))
	}
	g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net"}, Timeout: span + 10*time.Minute})
	churn(t, g, span/10)
	time.Sleep(time.Second)
	early := measure(g)
	n := churn(t, g, span*9/10)
	time.Sleep(time.Second)
	late := measure(g)
	t.Logf("%d connections; descriptors %d, then %d; RSS %d KiB, then %d", n, early.fds, late.fds, early.rss, late.rss)
	// UDP flows outlive their last datagram, and pages once touched stay.
	if late.fds > early.fds+256 {
		t.Errorf("descriptors grew from %d to %d", early.fds, late.fds)
	}
	if late.rss > early.rss*5/4+8192 {
		t.Errorf("resident memory grew from %d to %d KiB", early.rss, late.rss)
	}
}

// churn opens, uses and closes connections one after another in 16 threads.
func churn(t *testing.T, g *netlab.Guest, span time.Duration) int64 {
	var wg sync.WaitGroup
	var done, bad atomic.Int64
	end := time.Now().Add(span)
	for i := range 16 {
		f := families[i%2]
		wg.Go(func() {
			for time.Now().Before(end) {
				if s, err := netlab.Ask(g.NS, "tcp", f.at(f.remote, "7"), "soak"); s != "soak" {
					if bad.Add(1) < 10 {
						t.Errorf("%s: %q, %v", f.name, s, err)
					}
					time.Sleep(10 * time.Millisecond)
				}
				done.Add(1)
			}
		})
	}
	wg.Go(func() {
		c := g.Dial("udp", "192.0.2.9:7")
		for time.Now().Before(end) {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			fmt.Fprint(c, "soak")
			_, _ = c.Read(make([]byte, 16))
			time.Sleep(time.Millisecond)
		}
	})
	wg.Wait()
	return done.Load()
}
