// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// capturedNames starts an instance whose aldente-names follows a script, see
// names/captive.go.
func capturedNames(t *testing.T, lab *netlab.Lab, script string, args ...string) *netlab.Guest {
	t.Helper()
	return lab.For(t).GuestWith(netlab.GuestSpec{Binary: filepath.Join(captives(t, captiveNames), "pasta"),
		Wrap: []string{"env", "ALDENTE_CAPTIVE_NAMES=report=log " + script}, Resolv: "nameserver 192.0.2.9\n",
		Args: append([]string{"--config-net", "-d"}, args...)})
}

// saidNames waits for what the script said of a word.
func saidNames(t *testing.T, g *netlab.Guest, word string) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^captive: ` + regexp.QuoteMeta(word) + `: (.*?) component=names`)
	var m []string
	if !eventually(time.Minute, func() bool { m = line.FindStringSubmatch(g.Proc.Output()); return m != nil }) {
		t.Fatalf("nothing said of %s:\n%s", word, g.Proc.Output())
	}
	return m[1]
}

// namesEnded waits for the process's end and returns the cause that the log gives.
func namesEnded(t *testing.T, g *netlab.Guest) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^names ended cause="?(.*?)"? lived=`)
	var m []string
	if !eventually(20*time.Second, func() bool { m = line.FindStringSubmatch(g.Proc.Output()); return m != nil }) {
		t.Fatalf("it lives:\n%s", g.Proc.Output())
	}
	return m[1]
}

// TestCapturedNames: an aldente-names that has been taken over lies as it likes. The guest
// reaches nothing by that which a rule by address denies, and by its lies about a name what
// the rules allow that name; the sockets that it gets lead to the resolvers that were
// configured, and no others.
func TestCapturedNames(t *testing.T) {
	needOurs(t)
	lab, _ := namesLab(t)
	served := []*atomic.Int64{counted(lab.Remote, "10.1.2.3:443"), counted(lab.Remote, "169.254.169.254:443"), counted(lab.Remote, named4+":9"),
		counted(lab.Host, "192.0.2.2:443"), counted(lab.Host, "127.0.0.1:443"), counted(lab.Remote, "192.0.2.9:9")}
	resolver := counted(lab.Remote, netlab.Far4+":53")
	words := []struct{ word, want string }{
		// What is denied before holds, as does what is the guard of names.
		{"named=pypi.test,10.1.2.3,169.254.169.254,127.0.0.1,192.0.2.2," + named4, "granted 0x10"},
		{"named=pypi.test,64:ff9b::a01:203,2002:a9fe:a9fe::1,::ffff:10.1.2.3,fd00:ec2::254,::1", "granted 0x0"},
		{"named=other.test," + other4, "granted 0x0"},
		{"named=pythonhosted.test," + other4, "granted 0x0"},
		{"dial=0,udp", "opened, written: <nil>"},
		{"dial=0,tcp", "opened, written: <nil>"},
		// Nobody answers notes that say the same.
		{"noted=1,pypi.test,10.1.2.3,169.254.169.254,127.0.0.1,192.0.2.2", "sent"},
		{"noted=1,other.test," + other4, "sent"},
	}
	script := ""
	for _, w := range words {
		script += w.word + " "
	}
	args := slices.Concat([]string{"--deny", "private", "--deny", "metadata", "--deny", "host"},
		[]string{"--allow", "pypi.test:443", "--allow", "*.pythonhosted.test:443", "--deny", "any"})
	g := capturedNames(t, lab, script, args...)
	for _, w := range words {
		if got := saidNames(t, g, w.word); got != w.want {
			t.Errorf("%s: %q, want %q", w.word, got, w.want)
		}
	}
	for _, to := range []string{"10.1.2.3:443", "169.254.169.254:443", "192.0.2.1:443", other4 + ":443", named4 + ":80", "192.0.2.9:443", "[64:ff9b::a01:203]:443"} {
		for _, proto := range []string{"tcp", "udp"} {
			if got := reach(g, proto+" "+to); got != prohibited {
				t.Errorf("%s %s: %s", proto, to, got)
			}
		}
	}
	if got := reach(g, "tcp "+named4+":443"); got == prohibited {
		t.Error("what was granted is refused")
	}
	for i, n := range served {
		if n.Load() != 0 {
			t.Errorf("place %d was reached", i)
		}
	}
	if resolver.Load() != 0 {
		t.Error("a resolver that nobody has configured was asked")
	}
}

// TestCapturedNamesRecords: a record that no aldente-names of ours sends is its sender's
// last; it is replaced, with back-off, and the guest's other flows go on.
func TestCapturedNamesRecords(t *testing.T) {
	needOurs(t)
	lab, _ := namesLab(t)
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	for name, say := range map[string]string{
		"no header":             "record=ff",
		"unknown kind":          "record=7f02080000000000",
		"a worker's kind":       "record=0d000c000000000001000000",
		"ready again":           "record=8002080000000000",
		"resolver of no number": "record=81021000000000000100000005110000",
		"relayed to nothing":    "record=8a021000000000000100000000000000",
		"a note of no name":     "note=81021000000000000100000000110000 counted=1",
	} {
		t.Run(name, func(t *testing.T) {
			g := capturedNames(t, lab, "sleep=300ms "+say, "--allow", "pypi.test:443", "--allow", "192.0.2.9:7", "--deny", "any")
			c := g.Dial("tcp", "192.0.2.9:7")
			if cause := namesEnded(t, g); !strings.Contains(cause, "killed by the broker: malformed record") {
				t.Errorf("cause %q", cause)
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("a flow of the guest's: %v", err)
			}
			if g.Proc.Exited() {
				t.Error("the broker is gone")
			}
		})
	}
}

// TestCapturedNamesFloods: what it sends without end costs its broker neither memory nor
// descriptors, and the guest's other flows go on; of sockets to resolvers it gets as many as
// its budget says.
func TestCapturedNamesFloods(t *testing.T) {
	heavy(t)
	needOurs(t)
	lab, _ := namesLab(t)
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	for _, tt := range []struct{ word, want string }{
		{"hold=2000,0", "384 held, then EMFILE"},
		{"flood=15000,pypi.test," + named4, "done"},
		{"noted=100000,pypi.test," + named4, "sent"},
		{"refused=15000", "sent"},
		{"counted=15000", "sent"},
	} {
		t.Run(tt.word, func(t *testing.T) {
			g := capturedNames(t, lab, "sleep=300ms "+tt.word, "--allow", "pypi.test:443", "--allow", "192.0.2.9:7", "--deny", "any")
			before := vitals(t, g.Proc.PID)
			if got, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "meanwhile"); got != "meanwhile" {
				t.Errorf("a flow of the guest's: %q, %v", got, err)
			}
			if got := saidNames(t, g, tt.word); got != tt.want {
				t.Errorf("said %q, want %q", got, tt.want)
			}
			after := vitals(t, g.Proc.PID)
			t.Logf("before %+v, after %+v", before, after)
			if after.rss > before.rss+8<<10 || after.fds > before.fds+16 {
				t.Errorf("grown from %+v to %+v", before, after)
			}
			if n := strings.Count(g.Proc.Output(), "name refused"); n > 200 {
				t.Errorf("%d lines in the log", n)
			}
		})
	}
}

// stagesArgs have a guest's flows by one name looked at, whose address a script grants itself.
func stagesArgs(file string) []string {
	return []string{"--rules", file, "--verify-sni=443-444", "--allow", "192.0.2.9:7", "--deny", "any"}
}

// TestCapturedNamesStages: one that has been taken over gets no socket of a flow by saying of
// others' or of none what nobody has asked it, nor by a name that the rules do not let be
// there: the server hears nothing. That of a flow to where an allowed name leads it gets; it
// keeps it no longer than the rules allow that, though it were to.
func TestCapturedNamesStages(t *testing.T) {
	needOurs(t)
	lab, _ := namesLab(t)
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	heard := make(chan string, 8)
	l := lab.Remote.Listen("tcp", other4+":444") // 443 has a server
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 100)
				for { // the last is empty
					n, err := c.Read(b)
					heard <- string(b[:n])
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	g := &ruledGuest{t: t, lab: lab, file: filepath.Join(socketDir(t), "rules")}
	g.write("allow pypi.test:444\n")
	script := "named=pypi.test," + other4 + " unstaged=1000,pypi.test stage=evil.test stage=pypi.test passed=0"
	g.Guest = capturedNames(t, lab, script, stagesArgs(g.file)...)
	for word, want := range map[string]string{"named=pypi.test," + other4: "granted 0x1", "unstaged=1000,pypi.test": "sent"} {
		if got := saidNames(t, g.Guest, word); got != want {
			t.Fatalf("%s: %s", word, got)
		}
	}
	server := func() string {
		t.Helper()
		select {
		case b := <-heard:
			return b
		case <-time.After(20 * time.Second):
			return "(the connection stays)"
		}
	}
	c, err := g.DialError("tcp", other4+":444", 20*time.Second)
	if err == nil {
		defer c.Close()
		_, err = c.Write([]byte("secret"))
	}
	if got := saidNames(t, g.Guest, "stage=evil.test"); got != "ended" {
		t.Errorf("by another name: %s", got)
	}
	switch { // it waits for nothing that the guest says: the reset comes as soon as it can
	case err == nil:
		g.ends("by another name", c)
	case !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE):
		t.Error(err)
	}
	if got := server(); got != "" {
		t.Errorf("the server has heard %q", got)
	}
	c = g.Dial("tcp", other4+":444")
	defer c.Close()
	if got := saidNames(t, g.Guest, "stage=pypi.test") + saidNames(t, g.Guest, "passed=0"); got != "socketsent" {
		t.Fatal(got)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got := server(); got != "hello" {
		t.Errorf("the server has heard %q", got)
	}
	old := namesProcess(t, g.Proc.PID)
	g.write("allow other.test:444\n")
	g.hangUp("egress rules were loaded")
	g.ends("refused since", c)
	if got := server(); got != "" {
		t.Errorf("the server has heard more: %q", got)
	}
	g.logged(0, "names may have kept them: it is replaced, too")
	if !eventually(20*time.Second, func() bool { return namesProcess(t, g.Proc.PID) != old }) {
		t.Error("it is not replaced")
	}
	if got := reach(g.Guest, "tcp "+other4+":444"); got != prohibited {
		t.Errorf("where it has led before: %s", got)
	}
}

// TestCapturedNamesDeaf: one that reads nothing has nobody wait but those who ask it.
func TestCapturedNamesDeaf(t *testing.T) {
	needOurs(t)
	lab, _ := namesLab(t)
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	file := filepath.Join(socketDir(t), "rules")
	if err := os.WriteFile(file, []byte("allow pypi.test:443\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g := capturedNames(t, lab, "named=pypi.test,"+named4+" sleep=60s", stagesArgs(file)...)
	saidNames(t, g, "named=pypi.test,"+named4)
	for range 600 { // more than its channel holds
		c := g.Dial("udp", "192.0.2.9:53")
		_, _ = c.Write([]byte("anything"))
		defer c.Close()
	}
	for range 4 {
		go func() {
			if c, err := g.DialError("tcp", named4+":443", 10*time.Second); err == nil {
				c.Close()
			}
		}()
	}
	time.Sleep(200 * time.Millisecond)
	since := time.Now()
	if got := reach(g, "tcp 192.0.2.9:7"); got != open || time.Since(since) > 10*time.Second {
		t.Errorf("another connection: %s after %v\n%s", got, time.Since(since), g.Proc.Output())
	}
}

// TestCapturedNamesProxy: an aldente-names that has been taken over hears of no connection
// that the rules deny. Where it claims that the proxy was asked, which it was not, the guest
// has a connection with the proxy, and without the password gets nowhere by it.
func TestCapturedNamesProxy(t *testing.T) {
	needOurs(t)
	lab, p, secret := viaLab(t, "me")
	g := capturedNames(t, lab, "sleep=300ms relayed=1,1 relayed=7,2 relay=1 relay=6", "--via", "socks5://me@192.0.2.9:1080", "--via-secret", secret,
		"--deny", "198.51.100.0/24")
	for _, to := range []string{"198.51.100.7:443", "192.0.2.9:1080"} {
		if got := reach(g, "tcp "+to); got != prohibited {
			t.Errorf("%s: %s", to, got)
		}
	}
	c := g.Dial("tcp", behind4+":443")
	if got := viaSays(c, "\x05\x01\x00", 2); got != "\x05\xff" { // no method is acceptable
		t.Errorf("the proxy says %q", got)
	}
	c.Close()
	if got := saidNames(t, g, "relay=1"); got != "claimed for "+behind4+":443" {
		t.Errorf("%q", got)
	}
	if got := reach(g, "tcp ["+behind6+"]:443"); got != refused {
		t.Errorf("where it claims that the destination has refused: %s", got)
	}
	if got := saidNames(t, g, "relay=6"); got != "claimed for ["+behind6+"]:443" {
		t.Errorf("%q", got)
	}
	if asked := p.took(); len(asked) > 0 {
		t.Errorf("the proxy was asked for %q", asked)
	}
	if g.Proc.Exited() {
		t.Error("the broker is gone")
	}
}

// TestCapturedNamesEnds: how one has ended is told, whichever way that was.
func TestCapturedNamesEnds(t *testing.T) {
	needOurs(t)
	lab, _ := namesLab(t)
	for attempt, want := range map[string]string{
		"exit-3": "exit status 3", "panic": "captive panics", "socket-tcp": "forbidden system call", "connect": "forbidden system call",
	} {
		g := capturedNames(t, lab, "attempt="+attempt, "--allow", "pypi.test:443", "--deny", "any")
		if cause := namesEnded(t, g); !strings.Contains(cause, want) {
			t.Errorf("%s: cause %q, want %q", attempt, cause, want)
		}
		if g.Proc.Exited() {
			t.Errorf("%s: the broker is gone", attempt)
		}
	}
}
