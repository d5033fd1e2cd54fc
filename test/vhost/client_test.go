// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"aldente/test/machine"
	"aldente/test/netlab"
	"aldente/test/vhost/frontend"
)

var (
	mac  = [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	host = [4]byte{192, 0, 2, 2}
	gw   = [4]byte{192, 0, 2, 1}
)

// everything is what front-ends of tests ask for.
var everything = frontend.Config{Features: frontend.AllFeatures, Protocol: frontend.AllProtocol}

// connect negotiates on a new connection.
func (p *passt) connect(t *testing.T, c frontend.Config) *frontend.Frontend {
	t.Helper()
	conn, err := frontend.Dial(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := frontend.New(conn, c)
	if err != nil {
		t.Fatalf("%v: %s", err, p.Output())
	}
	t.Cleanup(f.Close)
	return f
}

// begin is connect with rings at work, and with receive buffers in them.
func (p *passt) begin(t *testing.T, c frontend.Config) *frontend.Guest {
	t.Helper()
	f := p.connect(t, c)
	g, err := frontend.NewGuest(f, 4096)
	if err == nil {
		err = f.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// works asks for the router's hardware address and waits for the answer; again if it
// got lost, for which there is a reason where a ring is tiny and full.
func works(t *testing.T, g *frontend.Guest) {
	t.Helper()
	var err error
	for range 5 {
		if err = g.Resolve(0, mac, host, gw, 2*time.Second); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// nextWorks connects another front-end and lets it work.
func (p *passt) nextWorks(t *testing.T) {
	t.Helper()
	c := everything
	c.Sizes = []uint64{4 << 20}
	g := p.begin(t, c)
	works(t, g)
	g.Close()
}

// victim is a passt that is attacked, over and over.
type victim struct {
	*passt
	pid  int // of its worker
	open int // descriptors of that
	maps int // mappings of that
}

// newVictim starts one that has served a front-end.
func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{passt: start(t, netlab.New(t, netlab.Options{NoRemote: true}))}
	v.nextWorks(t)
	v.pid = v.Worker(t)
	for same := 0; same < 20; same++ { // it lets go of the first front-end meanwhile
		open, maps := v.count(t)
		if open != v.open || maps != v.maps {
			v.open, v.maps, same = open, maps, 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	return v
}

// count counts the worker's descriptors, and its mappings of guests' memory.
func (v *victim) count(t *testing.T) (open, maps int) {
	t.Helper()
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", v.pid))
	return machine.Descriptors(t, v.pid), strings.Count(string(b), "memfd")
}

// unharmed fails the test if an attack has left something behind, or has ended the
// worker.
func (v *victim) unharmed(t *testing.T) {
	t.Helper()
	v.nextWorks(t)
	if now := v.Worker(t); now != v.pid {
		t.Errorf("the worker was replaced: %s", v.Output())
		v.pid = now
		return
	}
	open, maps := v.count(t)
	for i := 0; i < 300 && (open != v.open || maps != v.maps); i++ {
		time.Sleep(10 * time.Millisecond)
		open, maps = v.count(t)
	}
	if open != v.open || maps != v.maps {
		t.Errorf("the worker has %d descriptors and %d mappings of the guest's, had %d and %d", open, maps, v.open, v.maps)
	}
	if strings.Contains(v.Output(), "goroutine ") {
		t.Errorf("a panic: %s", v.Output())
	}
}

// said waits for a line in the log that has come since it was so long.
func (v *victim) said(t *testing.T, since int, words ...string) {
	t.Helper()
	for range 200 {
		text := v.Output()[since:]
		for _, w := range words {
			if strings.Contains(text, w) {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the log has none of %q:\n%s", words, v.Output()[since:])
}
