// SPDX-License-Identifier: Apache-2.0

package test

import (
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestPictures records, for "make pictures", what the client prints of an instance with
// traffic: of nothing that is drawn in the documents the output is made up.
func TestPictures(t *testing.T) {
	dir := os.Getenv("ALDENTE_PICTURES")
	if dir == "" {
		t.Skip("make pictures")
	}
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := busyGuest(t, lab, "--allow", "198.51.100.0/24", "--allow", "tcp:[2001:db8:2::]/64:443", "--deny", "metadata", "--deny", "private", "-t", "8080:80")
	go netlab.Echo(lab.Remote.Listen("tcp", "198.51.100.9:22"))
	for _, period := range []float64{3, 11} { // seconds: what moves swells and ebbs
		up := g.Dial("tcp", "198.51.100.9:22")
		t.Cleanup(func() { up.Close() })
		go func() { _, _ = io.Copy(io.Discard, up) }()
		go func() {
			for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
				swell := 1 + math.Sin(time.Since(begun).Seconds()*2*math.Pi/period)
				if _, err := up.Write(make([]byte, 1+int(swell*swell*8000))); err != nil {
					return
				}
			}
		}()
	}
	_, _ = g.DialError("tcp", "169.254.169.254:80", time.Second)
	record := func(name string, env []string, args ...string) {
		p := lab.Host.Start(netlab.Spec{Args: append([]string{filepath.Join(netlab.Stage(), "aldentectl")}, args...), Env: env})
		if st := p.Wait(); st != 0 {
			t.Errorf("%v: status %d\n%s", args, st, p.Output())
		}
		text := "\x1b[1m$ aldentectl " + strings.Join(args, " ") + "\x1b[m\n" + p.Output()
		if err := os.WriteFile(filepath.Join(dir, name+".ansi"), []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
	record("flows", nil, "flows", "--interval", "2")
	record("rules", nil, "rules")
	record("why", nil, "why", "tcp", "169.254.169.254:80")
	record("top", []string{"CLICOLOR_FORCE=1", "TERM=xterm-256color", "COLUMNS=118", "LINES=18"}, "top", "--once", "--interval", "0.25", "--count", "90")
}
