// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// installed is what make install makes of the programs, of root.
func installed(t *testing.T) (dir string) {
	t.Helper()
	netlab.Have(t, "make")
	root := openDir(t)
	// The programs are there, and are not to be built for another prefix.
	c := exec.Command("make", "-C", "..", "install", "GOBUILD=:", "DESTDIR="+root, "PREFIX=/usr")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir = filepath.Join(root, "usr/bin")
	// It is looked for beside, or where the build was told.
	for _, name := range []string{"aldente-worker", "aldente-names"} {
		if err := os.Symlink("../libexec/aldente/"+name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestInstalled: a program that its user may not read belongs to the user namespace of
// its owner, root, and so does the agent that executes it in a guest's. User 0 of a
// guest that shares our PID namespace then cannot trace it, whatever capabilities it
// has there. With one that can be read it can, so that this test may fail.
func TestInstalled(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, tt := range []struct {
		name string
		dir  string
		seen bool
	}{
		{"installed", installed(t), false},
		{"readable", programs(t, 0o755, netlab.Root), true},
		{"the user's own", programs(t, 0o711, netlab.Nobody), true},
	} {
		for _, target := range []string{"PID", "path"} {
			for _, user := range []*netlab.User{netlab.Nobody, netlab.Root} {
				t.Run(fmt.Sprintf("%s, by %s, user %d", tt.name, target, user.UID), func(t *testing.T) {
					guest := holder(t, lab)
					w := window{target: target, program: tt.dir}
					p := lab.Host.Start(netlab.Spec{User: user, Timeout: time.Minute, Args: w.argv(t, guest)})
					defer p.Kill()
					agentOf(t, p.PID)
					look := func() (status int, said string) {
						g := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Timeout: time.Minute, Args: []string{"nsenter", "-t", strconv.Itoa(guest), "-U",
							"--preserve-credentials", "--", filepath.Join(netlab.Stage(), "hold"), lookArg, strconv.Itoa(p.PID)}})
						return g.Wait(), g.Output()
					}
					if !tt.seen {
						status, said := look()
						if status != 0 || !strings.Contains(said, "looked around") || p.Exited() {
							t.Errorf("status %d, ended: %v\n%s%s", status, p.Exited(), said, p.Output())
						}
						return
					}
					// Before it has come up it is less easy to see.
					for begin := time.Now(); ; {
						_, said := look()
						if !slices.ContainsFunc([]string{"mem of ", "process_vm_readv of ", "pidfd_getfd of ", "traced "}, func(what string) bool {
							return !strings.Contains(said, what+"aldente-agent")
						}) {
							break
						}
						if time.Since(begin) > 20*time.Second {
							t.Fatalf("not all is seen\n%s", said)
						}
					}
				})
			}
		}
	}
}
