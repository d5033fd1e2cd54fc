// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// looked is a connection to a port whose first bytes are looked at.
type looked struct {
	*testing.T
	net.Conn
	what  string
	hello []byte
}

// openLooked opens one to the raw server of sniLab, and sends some of a hello.
func openLooked(t *testing.T, g *netlab.Guest, what string, bytes int) *looked {
	t.Helper()
	c := &looked{t, g.Dial("tcp", net.JoinHostPort(named4, rawPort)), what, firstFlight("pypi.test")}
	t.Cleanup(func() { c.Close() })
	if bytes < 0 {
		bytes = len(c.hello)
	}
	if _, err := c.Write(c.hello[:bytes]); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return c
}

// passes sends the rest of a hello behind what was sent, or nothing, and sees to it that all
// has arrived.
func (c *looked) passes(sent int) {
	c.Helper()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if sent < 0 {
		sent = len(c.hello)
	}
	_, err := c.Write(c.hello[sent:])
	if err == nil {
		err = c.Conn.(*net.TCPConn).CloseWrite()
	}
	got, readErr := io.ReadAll(c)
	if want := fmt.Sprintf("welcome\n%d %x <nil>\n", len(c.hello), sha256.Sum256(c.hello)); string(got) != want || err != nil || readErr != nil {
		c.Errorf("%s: %q, %v, %v; want %q", c.what, got, err, readErr, want)
	}
}

// welcomed waits until the server's first words are there: the hello has passed.
func (c *looked) welcomed() {
	c.Helper()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, len("welcome\n"))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "welcome\n" {
		c.Errorf("%s: %q, %v", c.what, b, err)
	}
}

// reset waits for the connection's reset, before which nothing comes.
func (c *looked) reset() {
	c.Helper()
	_ = c.SetDeadline(time.Now().Add(8 * time.Second)) // a flow that is forgotten would end after ten
	if n, err := c.Read(make([]byte, 9)); !errors.Is(err, syscall.ECONNRESET) {
		c.Errorf("%s: %d bytes, %v; want a reset", c.what, n, err)
	}
}

// TestStagesNamesKilled: who looks is killed while one connection has sent nothing, one
// half of its hello, and one has gone on. The first two are reset at once, the last does
// not notice, and the next is looked at by another process.
func TestStagesNamesKilled(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	g := sniGuest(t, lab)
	silent, half, passed := openLooked(t, g, "silent", 0), openLooked(t, g, "half a hello", 100), openLooked(t, g, "passed", -1)
	passed.welcomed()
	old := namesProcess(t, g.Proc.PID)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	silent.reset()
	half.reset()
	if !eventually(20*time.Second, func() bool {
		c, err := g.DialError("tcp", net.JoinHostPort(named4, rawPort), 5*time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write(firstFlight("pypi.test"))
		n, _ := c.Read(make([]byte, 9)) // it is reset as long as there is no process
		return n > 0
	}) || namesProcess(t, g.Proc.PID) == old {
		t.Fatalf("nobody looks any more\n%s", g.Proc.Output())
	}
	openLooked(t, g, "the next", 50).passes(50)
	_ = passed.SetDeadline(time.Now().Add(30 * time.Second))
	_ = passed.Conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(passed); err != nil || !strings.HasPrefix(string(got), fmt.Sprint(len(passed.hello), " ")) {
		t.Errorf("passed: %q, %v", got, err)
	}
}

// TestStagesReload: rules that come while a hello does judge it. What they refuse ends at
// once, whatever it will say and whoever has it; what they allow does not notice.
func TestStagesReload(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	const rest = "\nallow pypi.test:443\ndeny any\nverify-sni 443," + rawPort + "\n"
	const before = "allow pypi.test:" + rawPort + rest
	g := &ruledGuest{t: t, lab: lab, file: filepath.Join(socketDir(t), "rules")}
	g.write(before)
	g.Guest = lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "-d", "--rules", g.file}, Resolv: "nameserver 192.0.2.9\n"})
	resolved(t, g.Guest)
	stays, goes, silent, passed := openLooked(t, g.Guest, "half a hello", 100), openLooked(t, g.Guest, "another half", 100), openLooked(t, g.Guest, "silent", 0), openLooked(t, g.Guest, "passed", -1)
	passed.welcomed()
	g.write("allow 192.0.2.1\n" + before)
	g.hangUp("egress rules were loaded")
	stays.passes(100)
	g.write("allow 192.0.2.1" + rest)
	log := g.hangUp("egress rules were loaded")
	goes.reset()
	silent.reset()
	passed.reset()
	for _, want := range []string{"refused by the egress rules", "flows_ended=3"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	if strings.Contains(g.Proc.Output(), "it is replaced") {
		t.Errorf("somebody was replaced\n%s", g.Proc.Output())
	}
}

// TestStagesOdd: hellos that end before they are whole, that are reset behind them, or have an
// urgent byte in the middle: what is whole goes on as it was sent, what is not is reset, and
// of none anything is left.
func TestStagesOdd(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	g := sniGuest(t, lab)
	for _, sent := range []int{0, 1, 5, 100} {
		c := openLooked(t, g, fmt.Sprint("the end behind ", sent), sent)
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		c.reset()
	}
	for range 40 {
		c := openLooked(t, g, "reset by the guest", -1)
		_ = c.Conn.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	for _, at := range []int{0, 1, 50, 500} {
		c := openLooked(t, g, fmt.Sprint("urgent at ", at), at)
		raw, err := c.Conn.(*net.TCPConn).SyscallConn()
		if err == nil {
			if e := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), c.hello[at:at+1], unix.MSG_OOB, nil) }); e != nil {
				err = e
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		c.passes(at + 1)
	}
	if !eventually(20*time.Second, func() bool {
		_, out := aldentectl(t, lab, netlab.Nobody, "metrics", "--pid", fmt.Sprint(g.Proc.PID))
		return hasMetric(out, "aldente_hellos_awaited", "", 0)
	}) {
		t.Error("flows are left that are looked at")
	}
	openLooked(t, g, "the next", 0).passes(0)
}

// TestHellosShown: how many flows are looked at, what has become of others, and that one
// would be looked at, can be asked for.
func TestHellosShown(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	g := sniGuest(t, lab)
	run := func(args ...string) string {
		_, out := aldentectl(t, lab, netlab.Nobody, append(args, "--pid", fmt.Sprint(g.Proc.PID))...)
		return out
	}
	openLooked(t, g, "silent", 0)
	openLooked(t, g, "passes", 0).passes(0)
	for _, name := range []string{"other.test", "another.test"} {
		c := openLooked(t, g, name, 0)
		c.hello = firstFlight(name)
		_, _ = c.Write(c.hello)
		c.reset()
	}
	c := openLooked(t, g, "no hello", 0)
	_, _ = c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	c.reset()
	for _, want := range []string{"flows whose hello is looked at: 1 of 256"} {
		if out := run("status"); !strings.Contains(out, want) {
			t.Errorf("status without %q:\n%s", want, out)
		}
	}
	metrics := run("metrics")
	for result, n := range map[string]int{"passed": 1, "other_name": 2, "no_hello": 1, "no_name": 0, "late": 0, "no_room": 0, "lost": 0} {
		if !hasMetric(metrics, "aldente_hellos_total", `result="`+result+`"`, n) {
			t.Errorf("not %d of %s:\n%s", n, result, metrics)
		}
	}
	if !hasMetric(metrics, "aldente_hellos_awaited", "", 1) {
		t.Errorf("not one is looked at:\n%s", metrics)
	}
	const why = "--verify-sni: it has to begin with a client hello"
	for to, want := range map[string]bool{named4 + ":443": true, "pypi.test:" + rawPort: true, "[" + named6 + "]:443": true, named4 + ":80": false} {
		if out := run("why", "tcp", to); strings.Contains(out, why) != want {
			t.Errorf("%s:\n%s", to, out)
		}
	}
	plain := lab.For(t).Guest()
	g = plain
	if out := run("status") + run("metrics"); strings.Contains(out, "hello") {
		t.Errorf("where nothing is looked at:\n%s", out)
	}
}

// hasMetric tells whether a figure with a label has a value.
func hasMetric(text, name, label string, value int) bool {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok && strings.Contains(rest, label) && strings.HasSuffix(strings.TrimSpace(rest), fmt.Sprintf(" %d.0", value)) {
			return true
		}
	}
	return false
}
