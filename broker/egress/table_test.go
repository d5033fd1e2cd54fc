// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"aldente/ipc/domain"
)

// TestTimes: an address stands for as long as the guest was told, and a minute; at least
// five seconds and at most an hour count. A later answer makes it longer, never shorter.
func TestTimes(t *testing.T) {
	const flow = "tcp 198.51.100.7:443"
	for _, tt := range []struct{ told, stands time.Duration }{
		{0, 65 * time.Second}, {-time.Hour, 65 * time.Second}, {time.Second, 65 * time.Second}, {5 * time.Minute, 6 * time.Minute},
		{time.Hour, 61 * time.Minute}, {1 << 62, 61 * time.Minute},
	} {
		c := named(t, "+pypi.test", "-any")
		c.grant("pypi.test", tt.told, "198.51.100.7")
		if c.at = c.at.Add(tt.stands - time.Millisecond); !c.to(flow).Allowed {
			t.Errorf("told %v: gone before %v", tt.told, tt.stands)
		}
		if n, _ := c.Table(); n != 1 {
			t.Errorf("told %v: %d stand", tt.told, n)
		}
		if c.at = c.at.Add(time.Millisecond); c.to(flow).Allowed {
			t.Errorf("told %v: there after %v", tt.told, tt.stands)
		}
		if n, _ := c.Table(); n != 0 {
			t.Errorf("told %v: %d stand in the end", tt.told, n)
		}
	}
	c := named(t, "+pypi.test", "-any")
	c.grant("pypi.test", 10*time.Minute, "198.51.100.7")
	c.grant("pypi.test", 0, "198.51.100.7")
	if c.at = c.at.Add(10 * time.Minute); !c.to(flow).Allowed {
		t.Error("a later answer has made the time shorter")
	}
	c.grant("pypi.test", 10*time.Minute, "198.51.100.7")
	if c.at = c.at.Add(10 * time.Minute); !c.to(flow).Allowed {
		t.Error("a later answer has not made the time longer")
	}
}

// TestOpenFlow: a flow that is open is judged by the name that it was opened by, when the
// address's time is over as after a change of the rules, and by no name that came since.
func TestOpenFlow(t *testing.T) {
	c := named(t, "+pypi.test:443", "-any")
	c.grant("pypi.test", 0, "198.51.100.7")
	f := Flow{Proto: protoTCP, To: netip.MustParseAddrPort("198.51.100.7:443")}
	v := c.Judge(f)
	if !v.Allowed || !v.ByName || v.Name != "pypi.test" {
		t.Fatalf("%+v", v)
	}
	c.at = c.at.Add(2 * time.Hour)
	open := f
	open.Open, open.Name = true, v.Name
	past := f
	past.Past = true
	if c.Judge(f).Allowed || !c.Judge(open).Allowed || !c.Judge(past).Allowed {
		t.Errorf("after its time: new %t, open %t, for display %t", c.Judge(f).Allowed, c.Judge(open).Allowed, c.Judge(past).Allowed)
	}
	for rules, want := range map[string]bool{
		"+*.test:443 -any": true, "+pypi.test -any": true, "+pypi.test:444 -any": false, "+other.test:443 -any": false, "-pypi.test:443": false,
		"-pypi.test": false, "-other.test": true, "-198.51.100.0/24 +pypi.test -any": false, "+198.51.100.7 -any": true, "-any": false, "+pypi.test !any": false,
	} {
		if err := c.Replace(rulesOf(strings.Fields(rules)...)); err != nil {
			t.Fatal(err)
		}
		if got := c.Judge(open); got.Allowed != want {
			t.Errorf("%s: %+v", rules, got)
		}
	}
	// A name that its address was given since is none of its own.
	c = named(t, "+pypi.test:443", "-any")
	c.grant("pypi.test", time.Hour, "198.51.100.7")
	nameless := f
	nameless.Open = true
	if c.Judge(nameless).Allowed {
		t.Error("a flow without a name is allowed by its address's")
	}
	mapped := f
	mapped.Mapped = true
	if c.Judge(mapped).Allowed {
		t.Error("a destination under another address is allowed by name")
	}
}

// TestReplaceKeeps: what stands for a rule whose text stays goes on to, a new rule gets
// what has stood for names of its, and what nothing is for goes.
func TestReplaceKeeps(t *testing.T) {
	const flow = "tcp 198.51.100.7:443"
	c := named(t, "+pypi.test:443", "-any")
	c.grant("pypi.test", time.Minute, "198.51.100.7")
	for _, tt := range []struct {
		rules string
		want  bool
	}{
		{"+192.0.2.1 +pypi.test:443 -any", true}, {"+*.test:443 -any", true}, {"+other.test:443 -any", false}, {"+pypi.test:443 -any", false},
	} {
		if err := c.Replace(rulesOf(strings.Fields(tt.rules)...)); err != nil {
			t.Fatal(err)
		}
		if v := c.to(flow); v.Allowed != tt.want {
			t.Errorf("%s: %+v", tt.rules, v)
		}
	}
	if n, _ := c.Table(); n != 0 {
		t.Errorf("%d stand for rules that are gone", n)
	}
	// What no rule by name fitted is known to one that comes.
	c = named(t, "-other.test")
	c.grant("ads.test", time.Minute, "198.51.100.7")
	if v := c.to(flow); !v.Allowed || v.Name != "ads.test" || v.ByName {
		t.Errorf("%+v", v)
	}
	if err := c.Replace(rulesOf("-ads.test")); err != nil || c.to(flow).Allowed {
		t.Errorf("a new rule for a name that stands: %v, %+v", err, c.to(flow))
	}
	if err := c.Replace(rulesOf("-any", "+[x")); err == nil || c.to(flow).Allowed {
		t.Error("half of a change")
	}
	// Twice the same text are two rules.
	c = named(t, "+pypi.test:443", "+pypi.test:443", "-any")
	c.grant("pypi.test", time.Minute, "198.51.100.7")
	if n, _ := c.Table(); n != 2 {
		t.Errorf("%d stand", n)
	}
}

// TestTableFull: the table has its bound, whatever names lead to; the oldest goes first,
// and what is granted stands when the guest hears of it.
func TestTableFull(t *testing.T) {
	c := named(t, "+*.test", "+*.many.test", "-any")
	c.table.most = 128
	addr := func(i int) string { return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String() }
	for i := range 1000 {
		name := fmt.Sprintf("n%d.test", i)
		if c.grant(name, time.Hour, addr(i)) == "" {
			t.Fatalf("%d is not granted", i)
		}
		if i%50 == 0 {
			c.grant("stays.test", time.Hour, "198.51.100.7") // again, so it is none of the oldest
		}
		if !c.to("tcp "+addr(i)+":1").Allowed || !c.to("tcp 198.51.100.7:1").Allowed {
			t.Fatalf("%d: gone at once", i)
		}
	}
	if n, _ := c.Table(); n != 128 || c.table.used != 128 || len(c.table.pairs) > 129 || len(c.table.heads) > 128 {
		t.Errorf("%d stand, %d used of %d, %d addresses", n, c.table.used, len(c.table.pairs), len(c.table.heads))
	}
	if c.to("tcp "+addr(0)+":1").Allowed || !c.to("tcp "+addr(999)+":1").Allowed {
		t.Error("it is not the oldest that goes")
	}
	// One answer for more rules than the table has room: what is told stands.
	var rules []string
	for i := range 100 {
		rules = append(rules, fmt.Sprintf("+*.test:%d", i+1))
	}
	c = named(t, append(rules, "-any")...)
	c.table.most = 128
	var all []string
	for i := range maxAddrs + 10 {
		all = append(all, addr(i))
	}
	told := strings.Fields(c.grant("a.test", time.Hour, all...))
	for _, a := range told {
		if !c.to("tcp "+a+":1").Allowed || !c.to("tcp "+a+":100").Allowed {
			t.Errorf("%s is told and does not stand", a)
		}
	}
	if len(told) != 1 {
		t.Errorf("told %d", len(told))
	}
	c = named(t, "+*.test", "-any")
	if told := strings.Fields(c.grant("a.test", time.Hour, all...)); len(told) != maxAddrs {
		t.Errorf("of %d addresses %d are told", len(all), len(told))
	}
}

// tableMemory is what a full table may take, documented in docs/egress.md.
const tableMemory = 8 << 20

// TestTableFullDenied: where room is made by what a guest asks for besides, an address is not
// left with the rules that allow it alone.
func TestTableFullDenied(t *testing.T) {
	for _, rules := range [][]string{{"-ads.test:25", "+*.test", "-any"}, {"-*.test:25", "-udp:ads.test", "+ads.test", "+*.test:1-1000", "-any"}} {
		c := named(t, rules...)
		c.table.most = 20
		if c.grant("ads.test", time.Hour, "198.51.100.7") == "" || c.to("tcp 198.51.100.7:25").Allowed || !c.to("tcp 198.51.100.7:26").Allowed {
			t.Fatalf("%v: before", rules)
		}
		for i := range 30 {
			c.grant(fmt.Sprintf("n%d.test", i), time.Hour, netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}).String())
			if v := c.to("tcp 198.51.100.7:25"); v.Allowed {
				t.Fatalf("%v: after %d more names: %+v", rules, i+1, v)
			}
		}
		if c.to("tcp 198.51.100.7:26").Allowed {
			t.Errorf("%v: it stands still", rules)
		}
	}
}

// TestTableMemory fills the table with the longest names, and more of them.
func TestTableMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("fills the table twice")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c := named(t, "+*.test", "-any")
	tail := strings.Repeat("."+strings.Repeat("a", 62), 3) + "." + strings.Repeat("b", 40) + ".test"
	for i := range 2 * maxPairs {
		name := domain.Name(fmt.Sprintf("%08x", i) + tail)
		if len(name) > domain.MaxName || c.Grant(name, nil, []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}, c.at) != 1 {
			t.Fatalf("%d: not granted: %d octets", i, len(name))
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d pairs: %d KiB", c.table.used, used>>10)
	if n, bound := c.Table(); n != maxPairs || n != bound || used > tableMemory {
		t.Errorf("%d of %d pairs take %d bytes", n, bound, used)
	}
	runtime.KeepAlive(c)
}

// TestGrantBesideJudge: flows are judged while answers come and rules change.
func TestGrantBesideJudge(t *testing.T) {
	c := named(t, "+pypi.test:443", "+*.cdn.test", "-any")
	c.SetLocal(func(Flow) bool { return false })
	c.grant("pypi.test", time.Hour, "198.51.100.7")
	var wait sync.WaitGroup
	stop := make(chan struct{})
	for _, f := range []func(i int){
		func(i int) {
			i %= 1000
			c.Grant(domain.Name(fmt.Sprintf("n%d.cdn.test", i)), nil, []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}, c.at.Add(time.Hour))
		},
		func(i int) {
			dest := []string{"+*.cdn.test", "+*.test:80"}[i%2]
			if err := c.Replace(rulesOf("+pypi.test:443", dest, "-any")); err != nil {
				t.Error(err)
			}
		},
		func(int) { c.List(); c.Table(); c.ExplainName("pypi.test", protoTCP, 443) },
	} {
		wait.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					f(i)
				}
			}
		})
	}
	for range 20000 {
		if v := c.to("tcp 198.51.100.7:443"); !v.Allowed {
			t.Errorf("%+v", v)
			break
		}
		if v := c.to("tcp 198.51.100.9:443"); v.Allowed {
			t.Errorf("%+v", v)
			break
		}
	}
	close(stop)
	wait.Wait()
}
