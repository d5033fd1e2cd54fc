// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
)

// escape is what no terminal may get: clear the screen, the same by a single
// character of C1, text from right to left.
const (
	escape = "a\x1b[2Jb\u009b2Jc\u202ed\ne"
	shown  = "a?[2Jb?2Jc?d?e"

	escapeC1 = "b\u009b2Jc\u202ed" // the others make a record malformed
	shownC1  = "b?2Jc?d"
)

// TestAgentsWords has an agent that was taken over answer a set-up: what is shown of
// its words is no more than words.
func TestAgentsWords(t *testing.T) {
	name, err := ipc.MakeName(escapeC1)
	if err != nil {
		t.Fatal(err)
	}
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ours)
	defer unix.Close(its)
	c := &Client{channel: ours, id: 7}
	for _, r := range [][]byte{
		(&ipc.AgentLayer{ID: 7, State: uint8(policy.InForce), Name: name, Detail: name}).Encode(),
		(&ipc.AgentReport{ID: 7, Text: name}).Encode(),
		(&ipc.AgentReport{ID: 7, Fatal: 1, Text: name}).Encode(),
	} {
		if err := ipc.Send(its, r, -1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = c.answer(); err == nil || err.Error() != shownC1 {
		t.Errorf("fatal: %q", err)
	}
	if l := c.Layers(); len(l) != 1 || l[0].Name != shownC1 || l[0].Detail != shownC1 {
		t.Errorf("layers: %q", l)
	}
	warning := (&ipc.AgentReport{ID: 7, Text: name}).Encode()
	if fatal, text, err := c.report(warning); fatal || err != nil || text != shownC1 {
		t.Errorf("warning: %v, %q, %v", fatal, text, err)
	}
}

// TestAgentsTap gets something else than a tap for one.
func TestAgentsTap(t *testing.T) {
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ours)
	defer unix.Close(its)
	c := &Client{channel: ours, id: 7}
	for _, path := range []string{"/dev/null", "/", "/proc/self/status"} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = ipc.Send(its, (&ipc.AgentTap{ID: 7, Index: 1, Name: [16]byte{'a'}}).Encode(), fd)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		if tap, err := c.answer(); err == nil {
			t.Errorf("%s is taken for a tap: %+v", path, tap)
		}
	}
}

// TestSaid: standard error of an agent, bounded.
func TestSaid(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	done := make(chan struct{})
	go said(r, func(l string) { lines = append(lines, l) }, done)
	w.WriteString(escape + "\n" + strings.Repeat("x", 3*maxSaidLine) + "\n")
	for range 10 * maxSaidLines {
		if _, err := w.WriteString("more\n"); err != nil {
			break // nobody reads any more
		}
	}
	w.Close()
	<-done
	if len(lines) != maxSaidLines {
		t.Fatalf("%d lines", len(lines))
	}
	if got := lines[0] + "?" + lines[1]; got != shown {
		t.Errorf("shown as %q", got)
	}
	if n := len(lines[2]); n != maxSaidLine {
		t.Errorf("a line of %d bytes", n)
	}
}
