// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestBuildKit is a rootless BuildKit, as its unit starts it, which builds what fetches from a
// server.
func TestBuildKit(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	go http.Serve(lab.Remote.Listen("tcp", netlab.Far4+":8000"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }))
	for _, args := range [][]string{{"--net=slirp4netns"}, {"--net=pasta", "--port-driver=none"}} {
		t.Run(args[0], func(t *testing.T) {
			e := makeEngine(t, lab.For(t), "", true)
			root := filepath.Join(e.dir, "buildkit")
			socket := "unix://" + e.dir + "/run/buildkitd.sock"
			argv := append([]string{"rootlesskit"}, args...)
			argv = append(argv, "--copy-up=/etc", "--disable-host-loopback", "--state-dir="+e.dir+"/run/rootlesskit",
				"buildkitd", "--addr", socket, "--root", root, "--oci-worker-no-process-sandbox", "--oci-worker-snapshotter=native",
				"--oci-worker-binary=/usr/bin/crun", "--containerd-worker=false")
			daemon := e.lab.Host.Start(netlab.Spec{Args: append(e.environment(), argv...), User: user, Dir: e.dir, Timeout: 3 * time.Minute})
			ctl := func(args ...string) (int, string) {
				p := e.start(append([]string{"buildctl", "--addr", socket}, args...)...)
				st := e.wait(p)
				return st, p.Output()
			}
			for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				if st, _ := ctl("debug", "workers"); st == 0 {
					break
				}
				if daemon.Exited() || time.Now().After(deadline) {
					daemon.Kill()
					t.Fatalf("it does not come up\n%s", daemon.Output())
				}
			}
			if len(processes()) < 2 {
				t.Errorf("it is connected by nobody: %v", processes())
			}
			e.write("context/Dockerfile", fmt.Sprintf("FROM scratch\nADD root.tar /\nENV PATH=/bin\nRUN [\"/bin/wget\", \"-O\", \"/index.html\", \"http://%s:8000/\"]\n", netlab.Far4))
			command(t, "cp", filepath.Join(e.dir, "root.tar"), filepath.Join(e.dir, "context/root.tar"))
			out := filepath.Join(e.dir, "run/out")
			st, said := ctl("build", "--progress=plain", "--frontend=dockerfile.v0", "--local", "context="+e.dir+"/context", "--local", "dockerfile="+e.dir+"/context",
				"--output", "type=local,dest="+out)
			if b, err := os.ReadFile(filepath.Join(out, "index.html")); st != 0 || err != nil || string(b) != page {
				t.Errorf("status %d: %q, %v\n%s\n%s", st, b, err, said, daemon.Output())
			}
			_ = daemon.Signal(syscall.SIGTERM)
			if _, ok := daemon.WaitFor(20 * time.Second); !ok {
				t.Errorf("it does not end: %s", daemon.Output())
				daemon.Kill()
			}
			e.gone()
			e.wait(e.start("podman", "unshare", "rm", "-rf", root))
		})
	}
}
