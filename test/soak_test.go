// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestSoak has thousands of connections open, close, stall and break, over a
// link that gets better and worse, while the host's interface comes and goes,
// workers are killed and descriptors run out. What was not broken must lose
// nothing, and in the end the processes must hold what they held after the
// first round. ALDENTE_SOAK says how long; without it, a few seconds.
func TestSoak(t *testing.T) {
	heavy(t)
	needOurs(t)
	span, files := 6*time.Second, 512
	if s := os.Getenv("ALDENTE_SOAK"); s != "" {
		var err error
		if span, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
		files = 4096
	}
	k := newSoak(t, span, files)
	k.start()
	// Warm-up: everything happens that will happen.
	k.workerKilled()
	k.round(span / 24)
	k.workerKilled()
	k.round(span / 24)
	first := k.measure("after warm-up")
	last := first
	for n := 1; time.Since(k.began) < span*9/10; n++ {
		k.round(span / 8)
		last = k.measure(fmt.Sprintf("round %d", n))
	}
	k.same(first, last)
	k.workerKilled()
	k.workerKilled()
	k.round(span / 24)
	end := k.measure("new worker")
	k.same(first, end)
	k.stop()
}

// round is one of each disturbance, over the time given, and quiet after it.
func (k *soak) round(span time.Duration) {
	for i, d := range []netlab.Damage{
		{}, {Loss: 0.02, Delay: 2 * time.Millisecond}, netlab.Bad, {Loss: 0.1, Delay: 20 * time.Millisecond, Reorder: 0.2, Corrupt: 0.01}, {},
	} {
		k.damage(d)
		time.Sleep(span / 8)
		switch i {
		case 1:
			k.interfaceGone(min(span/16, 2*time.Second))
		case 3:
			k.damage(netlab.Damage{})
			k.noDescriptors()
		}
	}
	if k.t.Failed() {
		k.t.FailNow()
	}
}

// interfaceGone takes the host's interface away for a while.
func (k *soak) interfaceGone(d time.Duration) {
	k.disturb(func() {
		k.lab.HostLink(false)
		time.Sleep(d)
		k.lab.HostLink(true)
		// IPv6 neighbours are asked again after their own time.
		time.Sleep(200 * time.Millisecond)
	})
}

// workerKilled ends the worker and waits for its successor.
func (k *soak) workerKilled() {
	k.disturb(func() {
		k.breakLasting()
		old := mustWorker(k.t, k.g)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			k.t.Fatal(err)
		}
		if !eventually(10*time.Second, func() bool { w := k.g.Worker(); return w != 0 && w != old }) {
			k.t.Fatalf("no new worker\n%s", k.g.Proc.Output())
		}
		k.breakActive()
		if !eventually(10*time.Second, func() bool { return k.echo(k.g.NS, "tcp", "192.0.2.9:7", 1, time.Second) == nil }) {
			k.t.Fatal("the new worker does not work")
		}
	})
	k.kills++
	k.startLasting()
}

// noDescriptors opens connections until there are no descriptors left, and
// closes them.
func (k *soak) noDescriptors() {
	opened, refused := 0, 0
	k.disturb(func() {
		var all []interface{ Close() error }
		for refused < 5 && opened < k.files {
			c, err := k.g.DialError("tcp", "192.0.2.9:7", 100*time.Millisecond)
			if err != nil {
				refused++
				continue
			}
			opened++
			all = append(all, c)
		}
		for _, c := range all {
			c.Close()
		}
		if !eventually(10*time.Second, func() bool { return k.echo(k.g.NS, "tcp", "192.0.2.9:7", 1, time.Second) == nil }) {
			k.t.Error("no connection after descriptors are free again")
		}
	})
	if refused == 0 {
		k.t.Errorf("%d connections were opened and nothing ran out", opened)
	}
	k.most = max(k.most, opened)
}

// holding is what a process holds.
type holding struct {
	name      string
	pid       int
	fds       int // but inet sockets
	sockets   int // inet
	anon, rss int // KiB
}

// measure waits until nothing happens and tells what each process holds.
func (k *soak) measure(when string) []holding {
	k.pause()
	defer k.resume()
	var last []holding
	// Flows end in their own time: TIME-WAIT takes two seconds.
	for range 8 {
		time.Sleep(500 * time.Millisecond)
		var all []holding
		for _, p := range k.g.Processes() {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
			v := vitals(k.t, p)
			h := holding{name: strings.TrimSpace(string(comm)), pid: p, rss: v.rss}
			h.sockets = k.sockets(p)
			h.fds = v.fds - h.sockets
			for line := range strings.Lines(statusOf(p)) {
				fmt.Sscanf(line, "RssAnon: %d kB", &h.anon)
			}
			all = append(all, h)
		}
		still := len(all) == len(last)
		for i := range all {
			still = still && all[i].pid == last[i].pid && all[i].fds == last[i].fds && all[i].sockets == last[i].sockets
		}
		if last = all; still {
			break
		}
	}
	for _, h := range last {
		k.t.Logf("%6.0f s, %s: %s (%d): %d inet sockets, %d other descriptors, RSS %d KiB, of it anonymous %d KiB",
			time.Since(k.began).Seconds(), when, h.name, h.pid, h.sockets, h.fds, h.rss, h.anon)
	}
	return last
}

// sockets counts a process's sockets that are not of the local kind.
func (k *soak) sockets(pid int) int {
	local := map[string]bool{}
	for line := range strings.Lines(k.lab.Host.Read("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) > 6 {
			local["socket:["+f[6]+"]"] = true
		}
	}
	n := 0
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if l, _ := os.Readlink(fd); strings.HasPrefix(l, "socket:") && !local[l] {
			n++
		}
	}
	return n
}

// spares are the sockets of the namespace that the broker may keep ready.
const spares = 48

// same compares what processes held. Memory that was touched once stays, so
// there is some play: pools and the Go heap's own.
func (k *soak) same(before, after []holding) {
	k.t.Helper()
	if len(before) != len(after) {
		k.t.Fatalf("%d processes, then %d", len(before), len(after))
	}
	for _, a := range before {
		i := slices.IndexFunc(after, func(b holding) bool { return b.name == a.name })
		if i < 0 {
			k.t.Errorf("%s is gone", a.name)
			continue
		}
		b := after[i]
		if b.fds > a.fds+2 {
			k.t.Errorf("%s: descriptors grew from %d to %d", a.name, a.fds, b.fds)
		}
		if b.sockets > a.sockets+spares {
			k.t.Errorf("%s: inet sockets grew from %d to %d", a.name, a.sockets, b.sockets)
		}
		if b.anon > a.anon*5/4+4096 {
			k.t.Errorf("%s: memory grew from %d to %d KiB", a.name, a.anon, b.anon)
		}
	}
}

// limited is the command that starts the soak's translator, with a bound on the
// descriptors of each of its processes, and so on the flows that it can hold.
func limited(t *testing.T, files int) []string {
	t.Helper()
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skip("no prlimit(1)")
	}
	return []string{"prlimit", fmt.Sprintf("--nofile=%d:%d", files, files)}
}
