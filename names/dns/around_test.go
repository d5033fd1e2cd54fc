// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"testing"
)

// learned is a world in which the broker says of addresses how far that holds, and has been
// asked for one.
func learned(t *testing.T, cfg Config, bits uint8, rules ...string) *world {
	t.Helper()
	cfg.Resolvers = 1
	w := newWorld(t, cfg, rules...)
	for i := range w.around {
		w.around[i] = bits
	}
	w.add("first.test.", 60, a4("192.0.2.1"))
	w.expect(w.ask("first.test.", tA), noError, "192.0.2.1")
	return w
}

// atOnce asks for a name, of which the broker says nothing, and tells whether the addresses
// come all the same.
func (w *world) atOnce(name string, address string) bool {
	w.t.Helper()
	w.add(name, 60, a4(address))
	told := len(w.told)
	silent := w.silent
	w.silent = true
	m := w.ask(name, tA)
	w.silent = silent
	if len(w.told) != told+1 {
		w.t.Fatalf("%s: the broker was told %d times", name, len(w.told)-told)
	}
	return len(addrs(&m)) == 1
}

// TestAnsweredAhead: an address around one that was granted goes out at once, and the
// broker is told before; another one waits, as does a name that other rules are for, and
// what the broker is told and may not find yet.
func TestAnsweredAhead(t *testing.T) {
	for _, tt := range []struct {
		name, address string
		want          bool
	}{
		{"second.test.", "192.0.2.200", true},
		{"third.test.", "192.0.3.1", false},
		{"x.other.test.", "192.0.2.1", false},
	} {
		w := learned(t, Config{}, 120, "*.other.test", "*.test")
		if got := w.atOnce(tt.name, tt.address); got != tt.want {
			t.Errorf("%s %s: %v", tt.name, tt.address, got)
		}
	}
	w := learned(t, Config{}, 120, "*.test")
	w.full = true
	if w.atOnce("second.test.", "192.0.2.2") {
		t.Error("the broker cannot know of it yet")
	}
	w = learned(t, Config{Audit: true}, 120, "*.test")
	if w.atOnce("second.test.", "192.0.2.2") {
		t.Error("where all is learned")
	}
	w = learned(t, Config{}, 0, "*.test")
	if w.atOnce("second.test.", "192.0.2.1") {
		t.Error("the same address, where nothing holds for long")
	}
}

// TestAheadForgotten: nothing counts any more once rules or the host's addresses have
// changed, or the broker says another thing; nor what it says later of a question before.
func TestAheadForgotten(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"rules":  func(w *world) { w.e.SetRules(rulesOf(t, "*.test")) },
		"forget": func(w *world) { w.e.Forget() },
		"another word": func(w *world) {
			w.denied = func(a netip.Addr) bool { return true }
			w.add("denied.test.", 60, a4("192.0.2.66"))
			w.expect(w.ask("denied.test.", tA), noError, "192.0.2.66") // once, and what is told of it is cut from then on
			w.denied = nil
		},
	} {
		w := learned(t, Config{}, 120, "*.test")
		change(w)
		if w.atOnce("second.test.", "192.0.2.2") {
			t.Errorf("%s: goes on", name)
		}
	}
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	for i := range w.around {
		w.around[i] = 120
	}
	w.add("late.test.", 60, a4("192.0.2.1"))
	w.silent = true
	w.client(1, false)
	w.send(1, message("late.test.", tA))
	w.run()
	w.e.Forget()
	w.granted = w.told[0].Addrs
	w.e.Granted(w.told[0].Seq, 1, w.around, w.now)
	if len(w.e.around.known) > 0 {
		t.Error("what was said before counts")
	}
}

// TestAheadBounded: as many answers as the broker looks at are out without its word, and as
// many places are known as there may be; and what it never confirms is forgotten.
func TestAheadBounded(t *testing.T) {
	w := learned(t, Config{}, 120, "*.test")
	for i := range maxAhead {
		if !w.atOnce(fmt.Sprintf("n%d.test.", i), fmt.Sprintf("192.0.2.%d", i)) {
			t.Fatalf("%d waits", i)
		}
	}
	if w.atOnce("more.test.", "192.0.2.99") {
		t.Error("more are out than the broker looks at")
	}
	w.pass(grantWait + second)
	if n := len(w.e.around.told); n > 0 {
		t.Errorf("%d are out for ever", n)
	}
	if !w.atOnce("again.test.", "192.0.2.100") {
		t.Error("none goes out any more")
	}
	for i := range 2 * maxAround {
		w.e.around.add(place{"", [16]byte{byte(i), byte(i >> 8)}, 16})
		if len(w.e.around.known) > maxAround {
			t.Fatal("more places than there may be")
		}
	}
}
