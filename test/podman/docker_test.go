// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// page is what the remote's web server has.
const page = "fetched from the remote"

// docker is a rootless Docker daemon.
type docker struct {
	*engine
	daemon *netlab.Proc
}

// startDocker starts it as dockerd-rootless.sh does, with settings of its environment.
func startDocker(t *testing.T, e *engine, settings ...string) *docker {
	t.Helper()
	const script = "/usr/share/docker.io/contrib/dockerd-rootless.sh"
	args := slices.Concat([]string{"env"}, settings, []string{script, "--storage-driver=vfs", "--data-root=" + e.dir + "/docker"})
	d := &docker{e, e.lab.Host.Start(netlab.Spec{Args: append(e.environment(), args...), User: user, Dir: e.dir, Timeout: 3 * time.Minute})}
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if st, _ := d.try("version"); st == 0 {
			return d
		}
		if d.daemon.Exited() || time.Now().After(deadline) {
			d.daemon.Kill()
			t.Fatalf("it does not come up\n%s", d.daemon.Output())
		}
	}
}

func (d *docker) try(args ...string) (int, string) {
	d.t.Helper()
	p := d.start(append([]string{"env", "DOCKER_HOST=unix://" + d.dir + "/run/docker.sock", "docker"}, args...)...)
	st := d.wait(p)
	return st, p.Output()
}

// must is try, which has to succeed.
func (d *docker) must(args ...string) string {
	d.t.Helper()
	st, out := d.try(args...)
	if st != 0 {
		d.t.Fatalf("docker %s: status %d\n%s\n%s", strings.Join(args, " "), st, out, d.daemon.Output())
	}
	return strings.TrimSpace(out)
}

// TestDocker is a rootless daemon by Docker's own script, with either network: it makes an
// image of a tar, builds another that fetches from a server, and runs it with a
// published port.
func TestDocker(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	go http.Serve(lab.Remote.Listen("tcp", netlab.Far4+":8000"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }))
	for _, tt := range []struct {
		name     string
		settings []string
		program  string // that connects it
		client   string // that the server sees, "": it does not matter
	}{
		{"by itself", nil, "slirp4netns", ""},
		{"ports by the API", []string{"DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns", "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=slirp4netns"}, "slirp4netns", ""},
		{"pasta", []string{"DOCKERD_ROOTLESS_ROOTLESSKIT_NET=pasta"}, "pasta", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := makeEngine(t, lab.For(t), "", false)
			d := startDocker(t, e, tt.settings...)
			defer d.end()
			found := false
			for _, line := range processes() {
				found = found || strings.Contains(line, ": "+tt.program+" ")
			}
			if !found {
				t.Errorf("it is not connected by %s: %v", tt.program, processes())
			}
			d.must("import", filepath.Join(e.dir, "root.tar"), "busybox")
			dir := filepath.Join(e.dir, "build")
			e.write("build/Dockerfile", fmt.Sprintf("FROM busybox\nENV PATH=/bin\nRUN [\"/bin/wget\", \"-O\", \"/index.html\", \"http://%s:8000/\"]\n", netlab.Far4))
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			d.must("build", "-t", "built", dir)
			d.must("run", "-d", "--name", "web", "-p", "8080:80", "built", "/bin/httpd", "-f", "-p", "80", "-h", "/")
			var err error
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
				var got string
				if got, err = netlab.Ask(lab.Remote, "tcp", netlab.Host4+":8080", "GET /index.html HTTP/1.0\r\n\r\n"); err == nil {
					if strings.HasSuffix(got, page) {
						break
					}
					err = fmt.Errorf("it serves %q", got)
				}
			}
			if err != nil {
				t.Error(err)
			}
			if out := d.must("exec", "web", "/bin/nslookup", "a.example"); !strings.Contains(out, answered) {
				t.Errorf("nslookup: %s", out)
			}
			d.must("rm", "-f", "web")
		})
	}
}

// end ends the daemon, after which nothing is left.
func (d *docker) end() {
	d.t.Helper()
	_ = d.daemon.Signal(syscall.SIGTERM)
	if _, ok := d.daemon.WaitFor(20 * time.Second); !ok {
		d.t.Errorf("it does not end: %s", d.daemon.Output())
		d.daemon.Kill()
	}
	d.gone()
	// What is of other users of its namespace it takes away itself.
	d.wait(d.start("podman", "unshare", "rm", "-rf", filepath.Join(d.dir, "docker")))
}
