// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// script is what both clients are asked of both servers: every operation, both
// protocols, both families, ranges, exclusions, addresses, interfaces, both ways, and
// what cannot be. The last line leaves the rules as they were at the start.
var script = []string{
	"",
	"-s",
	"-s -A -t 9003 -t [::]/9004 -u 0.0.0.0/8077:78 -T 888",
	"-D -t 9003",
	"-D -t 9999",
	"-D -t 8077",
	"-t 1024 -U 1025",
	"",
	"-s -C HOST",
	"-C NOWHERE",
	"-s -A -t auto -u 2000-3000,~2500",
	"-s -C HOST -t 127.0.0.1%lo/5500 -T ~1-60000",
	"-D -t 127.0.0.1%lo/5500", // not with -A: what passt's client deletes first, it cannot add to
	"-s -A -t 0.0.0.0/5500:192.0.2.5/80 -t ::1/5500-5502:80-82",
	"-A -t 0.0.0.0/5500",
	"-A -t 5502",
	"-s -A -t none",
	"-A -t 80000",
	"-A -t 10-20:30",
	"--add --udp-ports=127.0.0.1/7000-7010,~7005 --show",
	"--delete --udp-ports=127.0.0.1/7000-7010,~7005 --show",
	"-s -t 9002 -u 127.0.0.1/5000-5010:6000-6010 -T none -U 4444",
}

// TestPestoCrossed: passt's pesto and ours, with passt's pasta and ours, show the same
// tables and end with the same status. They differ where docs/options.md says so: what
// is there already may be added, and errors may say more.
func TestPestoCrossed(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	ours := filepath.Join(filepath.Dir(netlab.Pasta()), "pesto")
	if original() {
		t.Skip("there is nothing to cross it with")
	}
	dir := t.TempDir()
	for p := dir; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		_ = os.Chmod(p, 0o777)
	}
	var want []string
	for _, server := range []string{"/usr/bin/pasta", netlab.Pasta()} {
		path := filepath.Join(dir, strings.ReplaceAll(server, "/", "-"))
		p := lab.Host.Start(netlab.Spec{User: user, Timeout: 2 * time.Minute, Args: []string{server, "-f", "--config-net",
			"-t", "9002", "-u", "127.0.0.1/5000-5010:6000-6010", "-T", "none", "-U", "4444", "-c", path, "--", "sleep", "110"}})
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Lstat(path); err == nil {
				break
			}
			if p.Exited() || time.Now().After(deadline) {
				t.Fatalf("%s: %s", server, p.Output())
			}
		}
		for _, client := range []string{"/usr/bin/pesto", ours} {
			var got []string
			for _, line := range script {
				c := lab.Host.Start(netlab.Spec{User: user, Args: append(append([]string{client}, strings.Fields(line)...), path)})
				st := c.Wait()
				got = append(got, fmt.Sprintf("pesto %s: status %d\n%s", line, st, strings.ReplaceAll(c.Stdout(), path, "PATH")))
			}
			if want == nil {
				want = got
			}
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("%s with %s:\n%s\nwant\n%s", client, server, got[i], want[i])
				}
			}
			// Ours alone: what is there may be added again.
			if client == ours {
				if c := lab.Host.Start(netlab.Spec{User: user, Args: []string{client, "-A", "-t", "9002", path}}); c.Wait() != 0 {
					t.Errorf("%s", c.Output())
				}
			}
		}
		p.Kill()
	}
}
