// SPDX-License-Identifier: Apache-2.0

// Package podman runs rootless Podman and RootlessKit with the program under
// test as their pasta. run.sh makes the surroundings that the tests need.
package podman

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m.Run)) }

// user owns the subordinate ids in run.sh's tree.
var user = &netlab.User{UID: 1000, GID: 1000}

// image is what containers are made of: busybox.
const image = "localhost/busybox"

// original reports whether the program under test is Debian's pasta. It leaves
// the link-local address tentative, and now and then stalls in bulk transfers
// at an MTU of 1500; all else here it does.
func original() bool { return netlab.Pasta() == "/usr/bin/pasta" }

// bulk is how many bytes a transfer is to move.
func bulk() int64 {
	if original() {
		return 256 << 10
	}
	return 64 << 20
}

// engine is Podman for one user on the lab's host, with storage, images and
// configuration of its own.
type engine struct {
	t    *testing.T
	lab  *netlab.Lab
	dir  string
	next bool // the Podman of /next
}

// newLab is a host and a remote with a resolver.
func newLab(t *testing.T, shape netlab.Shape) *netlab.Lab {
	t.Helper()
	if os.Getenv("ALDENTE_TEST_PODMAN") == "" {
		t.Skip("needs a Debian unstable of its own: make test-podman")
	}
	lab := netlab.New(t, netlab.Options{Shape: shape})
	if lab.Remote != nil {
		go resolve(lab.Remote.ListenUDP("udp", netlab.Far4+":53"))
	}
	return lab
}

// newEngine makes Podman usable. conf is added to containers.conf.
func newEngine(t *testing.T, lab *netlab.Lab, conf string) *engine {
	t.Helper()
	return makeEngine(t, lab, conf, os.Getenv("ALDENTE_PODMAN") == "next")
}

// makeEngine is newEngine with a Podman of one's choice.
func makeEngine(t *testing.T, lab *netlab.Lab, conf string, next bool) *engine {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "podman")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, lab: lab, dir: dir, next: next}
	helpers := []string{filepath.Dir(netlab.Pasta())}
	if next {
		helpers = append(helpers, "/next/usr/lib/podman", "/next/usr/libexec/podman")
	}
	helpers = append(helpers, "/usr/libexec/podman", "/usr/lib/podman", "/usr/bin")
	// Storage by copies: a container is 2 MB, and so neither overlayfs on
	// whatever is below nor FUSE has to work.
	e.write("config/containers/storage.conf", "[storage]\ndriver = \"vfs\"\n")
	e.write("config/containers/containers.conf", fmt.Sprintf(`
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["%s"]
[containers]
log_driver = "k8s-file"
%s`, strings.Join(helpers, `", "`), conf))
	e.write("root/etc/services", "")
	busybox := "root/bin/busybox"
	command(t, "install", "-D", "/usr/bin/busybox", filepath.Join(dir, busybox))
	command(t, "chroot", filepath.Join(dir, "root"), "/bin/busybox", "--install", "-s", "/bin")
	command(t, "mkdir", filepath.Join(dir, "run"))
	command(t, "chown", "-R", fmt.Sprintf("%d:%d", user.UID, user.GID), dir)
	e.podman("import", "-c", "ENV PATH=/bin", tarball(t, filepath.Join(dir, "root")), image)
	t.Cleanup(e.close)
	return e
}

// For returns the engine as a subtest uses it.
func (e *engine) For(t *testing.T) *engine {
	return &engine{t: t, lab: e.lab.For(t), dir: e.dir, next: e.next}
}

func (e *engine) write(name, text string) {
	e.t.Helper()
	name = filepath.Join(e.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		e.t.Fatal(err)
	}
}

// command runs a program as root in the test's own namespaces.
func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// tarball packs a folder and returns the archive's path.
func tarball(t *testing.T, dir string) string {
	t.Helper()
	command(t, "tar", "-cf", dir+".tar", "-C", dir, ".")
	return dir + ".tar"
}

// environment is what the user's programs run under.
func (e *engine) environment() []string {
	first := ""
	if e.next {
		first = "/next/usr/bin:"
	}
	return []string{"env", "-i", "HOME=" + e.dir, "XDG_RUNTIME_DIR=" + e.dir + "/run", "XDG_CONFIG_HOME=" + e.dir + "/config",
		"XDG_DATA_HOME=" + e.dir + "/data", "TMPDIR=/tmp", "PATH=" + first + filepath.Dir(netlab.Pasta()) + ":/usr/bin:/usr/sbin:/bin:/sbin"}
}

// start starts a program of the user's on the lab's host.
func (e *engine) start(args ...string) *netlab.Proc {
	e.t.Helper()
	return e.lab.Host.Start(netlab.Spec{Args: append(e.environment(), args...), User: user, Dir: e.dir, Timeout: time.Minute})
}

// wait waits for a program's end. Podman waits without end for those who hold
// its pipes, so who that is belongs to the report.
func (e *engine) wait(p *netlab.Proc) int {
	e.t.Helper()
	st, ok := p.WaitFor(40 * time.Second)
	if !ok {
		e.t.Logf("%s does not end:\n%s", strings.Join(p.Args, " "), describe())
		for pid := range processes() {
			_ = syscall.Kill(pid, syscall.SIGABRT) // a Go program then says where it was
		}
		p.WaitFor(2 * time.Second)
		p.Kill()
		st = p.Wait()
	}
	return st
}

// describe lists all processes and the files they have open.
func describe() string {
	var b strings.Builder
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, _ := os.ReadFile(dir + "/cmdline")
		stat, _ := os.ReadFile(dir + "/stat")
		fmt.Fprintf(&b, "%s%s\n", stat, strings.ReplaceAll(string(line), "\x00", " "))
		tasks, _ := filepath.Glob(dir + "/task/*")
		for _, task := range tasks {
			place, _ := os.ReadFile(task + "/wchan")
			fmt.Fprintf(&b, " %s", place)
		}
		b.WriteString("\n")
		files, _ := filepath.Glob(dir + "/fd/*")
		for _, f := range files {
			to, _ := os.Readlink(f)
			fmt.Fprintf(&b, " %s %s", filepath.Base(f), to)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// try runs Podman and returns its status and all it printed.
func (e *engine) try(args ...string) (int, string) {
	e.t.Helper()
	p := e.start(append([]string{"podman"}, args...)...)
	st := e.wait(p)
	return st, p.Output()
}

// podman runs Podman, which has to succeed, and returns its standard output.
func (e *engine) podman(args ...string) string {
	e.t.Helper()
	p := e.start(append([]string{"podman"}, args...)...)
	if st := e.wait(p); st != 0 {
		e.t.Fatalf("podman %s: status %d\n%s", strings.Join(args, " "), st, p.Output())
	}
	return strings.TrimSpace(p.Stdout())
}

// once runs a command in a container that ends with it and returns what it
// printed.
func (e *engine) once(options []string, args ...string) string {
	e.t.Helper()
	return e.podman(slices.Concat([]string{"run", "--rm"}, options, []string{image}, args)...)
}

// container is one that runs, and its network namespace.
type container struct {
	*netlab.NS
	e    *engine
	name string
}

// run starts a container that does nothing.
func (e *engine) run(name string, options ...string) *container {
	e.t.Helper()
	e.podman(slices.Concat([]string{"run", "-d", "--name", name, "--stop-timeout", "0"}, options, []string{image, "sleep", "600"})...)
	return e.container(name)
}

// container finds a running one by its name.
func (e *engine) container(name string) *container {
	e.t.Helper()
	pid := e.podman("inspect", "-f", "{{.State.Pid}}", name)
	return &container{netlab.OpenNS(e.t, name, "/proc/"+pid+"/ns/net"), e, name}
}

// exec runs a command in the container and returns what it printed.
func (c *container) exec(args ...string) string {
	c.e.t.Helper()
	return c.e.podman(append([]string{"exec", c.name}, args...)...)
}

// remove ends the container.
func (c *container) remove() {
	c.e.t.Helper()
	c.e.podman("rm", "-f", "-t", "0", c.name)
}

// processes returns the command lines of all processes of the program under
// test, by process id.
func processes() map[int]string {
	found := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		for _, name := range []string{"pasta", "passt", "slirp4netns", "aldente"} {
			if base := filepath.Base(exe); strings.HasPrefix(base, name) {
				line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				found[pid] = base + ": " + strings.ReplaceAll(string(line), "\x00", " ")
			}
		}
	}
	return found
}

// gone fails the test unless all processes of the program under test end
// within two seconds.
func (e *engine) gone() {
	e.t.Helper()
	var left map[int]string
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if left = processes(); len(left) == 0 {
			return
		}
	}
	e.t.Errorf("left behind: %v", left)
}

// close removes all containers and what Podman itself keeps running, and looks
// for what is left.
func (e *engine) close() {
	e.try("rm", "-af", "-t", "0")
	e.try("pod", "rm", "-af", "-t", "0")
	e.try("network", "prune", "-f")
	e.gone()
	e.try("system", "migrate") // ends the process that keeps its user namespace
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Errorf("%v", err)
	}
}
