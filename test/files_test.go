// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

func TestPcap(t *testing.T) {
	netlab.Have(t, "tcpdump", "ping")
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "capture.pcap")
	g := lab.Guest("-p", file)
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	g.Must("ping", "-c", "2", "-i", "0.1", "192.0.2.9")
	if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "captured"); s != "captured" {
		t.Fatalf("%q, %v", s, err)
	}
	g.Close()
	// tcpdump changes to another user when started as root, which a user
	// namespace with a single user does not let it.
	cmd := []string{"tcpdump", "-Z", "root", "-r", file, "-n", "-A", "--number"}
	if netlab.Nested() {
		cmd = append([]string{"unshare", "-U", "--map-user=1000"}, append(cmd[:1], cmd[3:]...)...)
	}
	out := lab.Host.Must(cmd...)
	for _, want := range []string{"ICMP echo request", "ICMP echo reply", "Flags [S]", "Flags [S.]", "captured"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the capture", want)
		}
	}
	if n := strings.Count(out, "ICMP echo"); n != 4 {
		t.Errorf("%d echo packets captured, want 4", n)
	}
}

func TestLogFile(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "log")
	g := lab.Guest("-d", "-l", file, "--log-size", "65536")
	_, _ = g.Run("ping", "-c", "1", "192.0.2.9")
	g.Close()
	b, err := os.ReadFile(file)
	if err != nil || len(b) == 0 || len(b) > 1<<17 {
		t.Errorf("log of %d bytes, %v", len(b), err)
	}
}

// TestStartup reports how long a short command takes; the figure is for
// comparison with another pasta on the same machine.
func TestStartup(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	var took []time.Duration
	for range 11 {
		start := time.Now()
		if st, p := pastaRun(t, lab, "", "--config-net", "--", "true"); st != 0 {
			t.Fatalf("status %d\n%s", st, p.Output())
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("pasta --config-net -- true: fastest %v, median %v", took[0], took[len(took)/2])
}

// TestNothingLeft checks that an instance's processes all end with it.
func TestNothingLeft(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	procs := g.Processes()
	g.Close()
	for _, p := range procs {
		if !gone(p, 10*time.Second) {
			t.Errorf("process %d of %v lives on", p, procs)
		}
	}
}

// TestBrokerKilled checks the same for a death that leaves no time to tidy
// up.
func TestBrokerKilled(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	procs := g.Processes()
	g.Proc.Kill()
	for _, p := range procs {
		if !gone(p, 10*time.Second) {
			t.Errorf("process %d of %v lives on", p, procs)
		}
	}
}
