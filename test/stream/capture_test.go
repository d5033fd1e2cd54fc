// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"aldente/test/machine"
	"aldente/test/netlab"
)

// TestCapture: what a machine sends and receives is seen as on its wire, with the verdict
// on what is refused.
func TestCapture(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, at := range []string{"192.0.2.9:7", "[2001:db8:1::9]:7"} {
		go netlab.Echo(lab.Remote.Listen("tcp", at))
	}
	p := start(t, lab, "--deny", "192.0.2.10", "--deny", "2001:db8:1::10")
	g := p.join(t, 1500)
	file := filepath.Join(machine.OpenDir(t), "capture")
	c := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{filepath.Join(netlab.Stage(), "aldentectl"), "capture", "--pid", strconv.Itoa(p.PID), "-w", file, "tcp"}})
	for tries := 0; ; tries++ {
		if st, err := os.Stat(file); err == nil && st.Size() > 0 {
			break
		}
		if time.Sleep(20 * time.Millisecond); c.Exited() || tries > 500 {
			t.Fatalf("no capture\n%s", c.Output())
		}
	}
	text := strings.Repeat("x", 200<<10)
	for _, at := range []string{"192.0.2.9:7", "[2001:db8:1::9]:7"} {
		if s, err := netlab.Ask(g.NS, "tcp", at, text); s != text {
			t.Fatalf("%s: %d bytes, %v", at, len(s), err)
		}
	}
	for _, at := range []string{"192.0.2.10:7", "[2001:db8:1::10]:7"} {
		if got := connects(g.NS, at); got != "prohibited" {
			t.Errorf("%s is %s", at, got)
		}
	}
	_ = c.Signal(syscall.SIGINT)
	if st := c.Wait(); st != 0 {
		t.Fatalf("status %d\n%s", st, c.Output())
	}
	sizes, comments, name := readCapture(t, file)
	if refusals := strings.Count(strings.Join(comments, "\n"), "refused by the egress rules"); name != "guest" || refusals < 2 || slices.Max(sizes) > 1514 || len(sizes) < 500 {
		t.Errorf("%d frames of %q, of %d bytes at most; comments %q", len(sizes), name, slices.Max(sizes), comments)
	}
}

// readCapture returns the frames' lengths, their comments and the interface's name.
func readCapture(t *testing.T, file string) (sizes []int, comments []string, name string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		_, info, more, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes, comments = append(sizes, info.Length), append(comments, more.Comments...)
	}
	i, err := r.Interface(0)
	if err != nil {
		t.Fatal(err)
	}
	return sizes, comments, i.Name
}
