// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"aldente/broker/hostnet/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// host has the test in a namespace with two interfaces, and listens there.
func host(t *testing.T) *Watcher {
	t.Helper()
	nettest.Host(t)
	nettest.Veth(t, "d0")
	nettest.IP(t, "addr add 192.0.2.2/24 dev d0", "addr add 2001:db8::2/64 dev d0 nodad")
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// news tells whether there is some within a time that a watcher would tell. The
// kernel has put it into the socket by the time that the change is made, or, of
// some addresses, a little later.
func news(t *testing.T, w *Watcher, within time.Duration) bool {
	t.Helper()
	if err := w.s.Deadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	news, ok := w.await()
	if !ok {
		t.Fatal("closed")
	}
	return news
}

const (
	soon = 20 * time.Millisecond
	long = 10 * time.Second
)

// TestChanges: whatever may make an address the host's is told; what cannot is not.
func TestChanges(t *testing.T) {
	w := host(t)
	defer w.Close()
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
		{"nexthop add id 7 via 192.0.2.1 dev d0", false},
		{"nexthop replace id 7 via 192.0.2.3 dev d0", false},
		{"nexthop add id 8 via 2001:db8::1 dev d0", false},
		{"nexthop add id 9 group 7", true},
		{"nexthop del id 9", true},
		{"link set d0 down", true},
	} {
		for news(t, w, soon) { // of what was before
		}
		nettest.IP(t, tt.line)
		within := soon
		if tt.told {
			within = long
		}
		if got := news(t, w, within); got != tt.told {
			t.Errorf("%s: told %t", tt.line, got)
		}
	}
}

// TestAnycast: what becomes the host's when it begins to forward.
func TestAnycast(t *testing.T) {
	w := host(t)
	defer w.Close()
	for news(t, w, soon) {
	}
	nettest.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	if !news(t, w, long) {
		t.Error("not told")
	}
}

// quick is the pace of tests that wait for it.
var quick = pace{pause: 10 * time.Millisecond, retry: 50 * time.Millisecond, most: 100 * time.Millisecond}

// watch counts the calls of a watcher, which are told to call again when again says
// so.
func watch(t *testing.T, again func(call int64) bool) *atomic.Int64 {
	t.Helper()
	w := host(t)
	w.pace = quick
	var calls atomic.Int64
	done := make(chan error, 1)
	go func() { done <- w.Run(Listener{Owns: func() bool { return again(calls.Add(1)) }}) }()
	t.Cleanup(func() {
		w.Close()
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		case <-time.After(long):
			t.Error("still running")
		}
	})
	return &calls
}

func never(int64) bool { return false }

// quiet waits until nothing is told any more. It does so in small steps: while the whole
// machine stands still, one of them passes.
func quiet(calls *atomic.Int64) int64 {
	n := calls.Load()
	for still := time.Duration(0); still < 4*quick.retry; still += quick.pause {
		time.Sleep(quick.pause)
		if now := calls.Load(); now != n {
			n, still = now, 0
		}
	}
	return n
}

// reaches waits until there were so many calls.
func reaches(calls *atomic.Int64, n int64) bool {
	for end := time.Now().Add(long); calls.Load() < n; time.Sleep(quick.pause) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// TestTold: once at once, a second time, and as often as is asked for.
func TestTold(t *testing.T) {
	var asked atomic.Int64
	calls := watch(t, func(call int64) bool { return call <= asked.Load() })
	before := quiet(calls)
	nettest.IP(t, "addr add 198.51.100.7/32 dev lo")
	if !reaches(calls, before+2) {
		t.Fatal("not told a second time")
	}
	before = quiet(calls)
	asked.Store(before + 4) // by these calls and those between
	nettest.IP(t, "addr add 198.51.100.8/32 dev lo")
	if !reaches(calls, before+5) {
		t.Errorf("told %d times, asked for 4 more", calls.Load()-before)
	}
	if n := quiet(calls) - before; n > 8 {
		t.Errorf("told %d times", n)
	}
}

// TestBurst: however many routes change, those who are told are called a few times
// a second, and hear of what comes after.
func TestBurst(t *testing.T) {
	calls := watch(t, never)
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
	if most := int64(time.Since(start)/quick.pause) + 2; n == 0 || n > most {
		t.Errorf("told %d times, at most %d were due", n, most)
	}
	before = quiet(calls)
	nettest.IP(t, "addr add 198.51.100.7/32 dev lo")
	if !reaches(calls, before+1) {
		t.Error("deaf after a burst")
	}
}

// TestNetwork: of a burst of changes one reading is told, a little after the last; later
// ones are told again, and as long as it could not be read.
func TestNetwork(t *testing.T) {
	w := host(t)
	w.pace = quick
	var calls, failing atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- w.Run(Listener{Network: func() bool { calls.Add(1); return failing.Add(-1) >= 0 }})
	}()
	defer func() {
		w.Close()
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}()
	before := quiet(&calls)
	for _, line := range []string{"addr add 198.51.100.7/32 dev d0", "route add 10.0.0.0/8 via 192.0.2.1", "addr add 2001:db8:7::7/128 dev d0 nodad",
		"rule add to 10.0.0.0/8 lookup 77", "nexthop add id 7 via 192.0.2.1 dev d0", "nexthop replace id 7 via 192.0.2.3 dev d0", "link set d0 name d1", "link add d2 type veth peer name d3", "link del d2"} {
		nettest.IP(t, line)
		if !reaches(&calls, before+1) {
			t.Errorf("%s: not told", line)
		}
		before = quiet(&calls)
	}
	if quiet(&calls) != before {
		t.Error("told without a change")
	}
	failing.Store(3)
	w.Mark()
	if !reaches(&calls, before+4) || quiet(&calls) != before+4 {
		t.Errorf("told %d times where it could not be read three times", calls.Load()-before)
	}
}

// TestNetworkBurst: however many routes change, the network is read a few times.
func TestNetworkBurst(t *testing.T) {
	w := host(t)
	w.pace = pace{pause: 50 * time.Millisecond, retry: 50 * time.Millisecond, most: 200 * time.Millisecond}
	var calls atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- w.Run(Listener{Network: func() bool { calls.Add(1); return false }})
	}()
	time.Sleep(100 * time.Millisecond)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 10000 {
		fmt.Fprintf(f, "route add 10.%d.%d.0/24 via 192.0.2.1\n", n>>8, n&0xff)
	}
	f.Close()
	start := time.Now()
	nettest.IP(t, "-batch "+f.Name())
	n := quiet(&calls)
	if most := int64(time.Since(start)/w.pace.most) + 3; n == 0 || n > most {
		t.Errorf("read %d times, at most %d were due", n, most)
	}
	w.Close()
	<-done
	w.Mark() // afterwards nobody minds
}

// TestFile: a file that is written, replaced, or comes to be another by a link on the way
// is noticed; what happens beside it is not.
func TestFile(t *testing.T) {
	w := host(t)
	w.pace = quick
	dir, run := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(run, "stub"), "one")
	write(filepath.Join(run, "other"), "two")
	if err := os.Symlink(filepath.Join(run, "stub"), path); err != nil {
		t.Fatal(err)
	}
	third := t.TempDir() // the folder of another program's file
	if err := w.File(path, filepath.Join(third, "managed"), filepath.Join(third, "no", "such")); err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- w.Run(Listener{Network: func() bool { calls.Add(1); return false }})
	}()
	defer func() { w.Close(); <-done }()
	for _, tt := range []struct {
		name string
		do   func() error
		told bool
	}{
		{"written", func() error { return os.WriteFile(filepath.Join(run, "stub"), []byte("three"), 0o600) }, true},
		{"beside it", func() error { return os.WriteFile(filepath.Join(run, "beside"), []byte("x"), 0o600) }, false},
		{"beside the link", func() error { return os.WriteFile(filepath.Join(dir, "beside"), []byte("x"), 0o600) }, false},
		{"replaced", func() error { return os.Rename(filepath.Join(run, "beside"), filepath.Join(run, "stub")) }, true},
		{"removed", func() error { return os.Remove(filepath.Join(run, "stub")) }, true},
		{"made again", func() error { return os.WriteFile(filepath.Join(run, "stub"), []byte("four"), 0o600) }, true},
		{"another link", func() error {
			next := filepath.Join(dir, "next")
			return errors.Join(os.Symlink(filepath.Join(run, "other"), next), os.Rename(next, path))
		}, true},
		{"a link into another folder", func() error {
			next := filepath.Join(dir, "next")
			return errors.Join(os.Symlink(filepath.Join(third, "managed"), next), os.Rename(next, path))
		}, true},
		{"made there", func() error { return os.WriteFile(filepath.Join(third, "managed"), []byte("five"), 0o600) }, true},
		{"written there", func() error { return os.WriteFile(filepath.Join(third, "managed"), []byte("six"), 0o600) }, true},
		{"beside it there", func() error { return os.WriteFile(filepath.Join(third, "beside"), []byte("x"), 0o600) }, false},
		{"replaced there", func() error { return os.Rename(filepath.Join(third, "beside"), filepath.Join(third, "managed")) }, true},
	} {
		before := quiet(&calls)
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		if tt.told && !reaches(&calls, before+1) || !tt.told && quiet(&calls) != before {
			t.Errorf("%s: told %d times", tt.name, calls.Load()-before)
		}
	}
	if err := w.File(filepath.Join(dir, "no", "such")); err == nil {
		t.Error("a file in no folder is watched")
	}
}
