// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"aldente/broker/hostnet/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// watch counts the calls of a watcher in a namespace of the test's own.
func watch(t *testing.T) *atomic.Int64 {
	t.Helper()
	nettest.Host(t)
	nettest.IP(t, "link add d0 type veth peer name d1", "link set d1 up", "link set d0 up", "addr add 192.0.2.2/24 dev d0", "addr add 2001:db8::2/64 dev d0 nodad")
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	done := make(chan error, 1)
	go func() { done <- w.Run(func() bool { calls.Add(1); return false }) }()
	t.Cleanup(func() {
		w.Close()
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("still running")
		}
	})
	return &calls
}

// quiet waits until nothing is told any more.
func quiet(calls *atomic.Int64) int64 {
	for {
		n := calls.Load()
		if time.Sleep(2 * retry); calls.Load() == n {
			return n
		}
	}
}

// TestChanges: whatever may make an address the host's is told, once and a second
// time; what cannot is not.
func TestChanges(t *testing.T) {
	calls := watch(t)
	for _, tt := range []struct {
		line string
		told bool
	}{
		{"addr add 198.51.100.7/32 dev lo", true},
		{"addr add 2001:db8:7::7/128 dev lo nodad", true},
		{"addr del 198.51.100.7/32 dev lo", true},
		{"route add local 203.0.113.0/24 dev lo", true},
		{"-6 route add local 2001:db8:8::/64 dev lo", true},
		{"route add blackhole 203.0.113.128/25", true},
		{"route add 10.0.0.0/8 via 192.0.2.1", false},
		{"-6 route add 2001:db8:9::/64 via 2001:db8::1", false},
		{"route replace 10.0.0.0/8 via 192.0.2.3", false},
		{"route del 10.0.0.0/8", true}, // which may uncover another
		{"route add 10.0.0.0/8 dev lo", true},
		{"rule add to 10.0.0.0/8 lookup 77", true},
		{"-6 rule add to 2001:db8:9::/64 lookup 77", true},
		{"link set d0 down", true},
	} {
		before := quiet(calls)
		nettest.IP(t, tt.line)
		if n := quiet(calls) - before; (n > 0) != tt.told || n == 1 {
			t.Errorf("%s: told %d times", tt.line, n)
		}
	}
}

// TestAnycast: what becomes the host's when it begins to forward.
func TestAnycast(t *testing.T) {
	calls := watch(t)
	before := quiet(calls)
	nettest.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	if quiet(calls) == before {
		t.Error("not told")
	}
}

// TestBurst: however many routes change, those who are told are called a few times
// a second, and hear of what comes after.
func TestBurst(t *testing.T) {
	calls := watch(t)
	before, start := quiet(calls), time.Now()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 10000 {
		fmt.Fprintf(f, "route add local 10.%d.%d.0/24 dev lo\n", n>>8, n&0xff)
	}
	f.Close()
	nettest.IP(t, "-batch "+f.Name())
	n := quiet(calls) - before
	if most := int64(time.Since(start)/pause) + 2; n == 0 || n > most {
		t.Errorf("told %d times, at most %d were due", n, most)
	}
	before = quiet(calls)
	nettest.IP(t, "addr add 198.51.100.7/32 dev lo")
	if quiet(calls) == before {
		t.Error("deaf after a burst")
	}
}
