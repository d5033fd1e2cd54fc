// SPDX-License-Identifier: Apache-2.0

// Package clients replays how other programs call ours: clients.txt has their command
// lines, and what they count on.
package clients

import (
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m.Run)) }

// patience is how long anything may take.
const patience = 30 * time.Second

// client is one paragraph of clients.txt: what is said by each word, in order.
type client map[string][]string

// words are those that there are, and whether each may stand more than once.
var words = map[string]bool{
	"client": false, "user": false, "before": false, "run": false, "open": false, "ready": false, "says": true, "guest": true,
	"then": true, "file": true, "left": false, "ends": false, "status": false, "gone": true,
}

// one is what a word says, "" if it is not there.
func (c client) one(word string) string {
	if all := c[word]; len(all) > 0 {
		return all[0]
	}
	return ""
}

func read(t *testing.T) (all []client) {
	t.Helper()
	b, err := os.ReadFile("clients.txt")
	if err != nil {
		t.Fatal(err)
	}
	c := client{}
	for line := range strings.Lines(string(b) + "\n") {
		line = strings.TrimSpace(line)
		word, text, _ := strings.Cut(line, "\t")
		many, known := words[word]
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "" && len(c) > 0:
			all, c = append(all, c), client{}
		case line == "":
		case !known, !many && len(c[word]) > 0:
			t.Fatalf("clients.txt: %s", line)
		default:
			c[word] = append(c[word], text)
		}
	}
	return all
}

// TestClients replays all of them.
func TestClients(t *testing.T) {
	netlab.Have(t, "unshare", "nsenter", "ip")
	if !netlab.Ours() {
		t.Skip("asks more than this pasta does")
	}
	// What a client leaves behind becomes our child: it is found, and its end is seen.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	lab := netlab.New(t, netlab.Options{})
	all := read(t)
	if len(all) < 20 {
		t.Errorf("only %d clients", len(all))
	}
	for _, c := range all {
		t.Run(c.one("client"), func(t *testing.T) { (&replay{t: t, client: c, lab: lab.For(t)}).run() })
	}
}

// replay is a client at work.
type replay struct {
	t *testing.T
	client
	lab *netlab.Lab

	dir    string // the client's folder
	holder int    // process in the guest's namespaces
	ns     *netlab.NS
	ours   *os.File // the client's end of what is passed as END
	exit   *os.File // writing end of descriptor 4
	ready  *os.File // reading end of descriptor 3

	cmd    *exec.Cmd
	output chan string // all of it, once nobody has it open
	ended  chan int    // status of the process that was started
	left   int         // process that it has left behind, 0: none
}

func (r *replay) run() {
	t := r.t
	r.prepare()
	r.start()
	defer r.kill()
	r.awaitReady()
	for _, g := range r.client["guest"] {
		r.guest(g)
	}
	for _, line := range r.client["then"] {
		c := r.command(r.fill(line))
		var out []byte
		err := r.lab.Host.Do(func() (err error) { out, err = c.CombinedOutput(); return })
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	for _, f := range r.client["file"] {
		name, want, _ := strings.Cut(r.fill(f), " => ")
		b, err := os.ReadFile(name)
		if ok, e := regexp.Match(strings.ReplaceAll(want, `\n`, "\n"), b); err != nil || e != nil || !ok {
			t.Errorf("%s: %q, %v, want %s", name, b, err, want)
		}
	}
	if r.one("left") != "" {
		r.checkLeft()
	}
	if r.one("ready") == "print" {
		return
	}
	r.end()
}

// fill puts in what a line leaves open.
func (r *replay) fill(line string) string {
	return strings.NewReplacer("DIR", r.dir, "PID", strconv.Itoa(r.holder)).Replace(
		regexp.MustCompile(`\bNS\b`).ReplaceAllString(line, filepath.Join(r.dir, "ns")))
}

// prepare makes the guest's namespaces, and the client's descriptors.
func (r *replay) prepare() {
	t := r.t
	var err error
	if r.dir, err = os.MkdirTemp(netlab.Stage(), "client"); err == nil {
		err = os.Chmod(r.dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := r.lab.Host.Start(netlab.Spec{User: netlab.Nobody, Timeout: 5 * time.Minute,
		Args: []string{"unshare", "-Urn", "sh", "-ec", r.one("before") + "\nexec sleep 300"}})
	r.holder = p.PID
	r.until("namespaces", func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID))
		return strings.TrimSpace(string(comm)) == "sleep"
	})
	r.ns = netlab.OpenNS(t, "guest", fmt.Sprintf("/proc/%d/ns/net", p.PID))
	path := filepath.Join(r.dir, "ns")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(r.ns.Path(), path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

// command is a command line of the client's, as its user.
func (r *replay) command(line string) *exec.Cmd {
	args := strings.Fields(line)
	args[0] = filepath.Join(netlab.Stage(), args[0])
	if open := r.one("open"); open != "" {
		args = append([]string{"sh", "-c", `exec "$0" "$@" ` + r.fill(open)}, args...)
	}
	if r.one("user") == "userns" {
		args = append([]string{"nsenter", "-t", strconv.Itoa(r.holder), "-U", "--preserve-credentials", "--"}, args...)
	}
	c := exec.Command(args[0], args[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !netlab.Nested() && r.one("user") != "root" {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}
	}
	return c
}

func (r *replay) start() {
	t := r.t
	pipe := func() (reading, writing *os.File) {
		reading, writing, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { reading.Close(); writing.Close() })
		return reading, writing
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[0]), "END")
	r.ours = os.NewFile(uintptr(pair[1]), "the other end")
	t.Cleanup(func() { r.ours.Close() })
	var three, four *os.File
	r.ready, three = pipe()
	four, r.exit = pipe()
	said, saying := pipe()

	before := children()
	r.cmd = r.command(r.fill(r.one("run")))
	r.cmd.Stdout, r.cmd.Stderr = saying, saying
	r.cmd.ExtraFiles = []*os.File{three, four, theirs}
	if err := r.lab.Host.Do(r.cmd.Start); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{three, four, theirs, saying} {
		f.Close()
	}
	r.output, r.ended = make(chan string, 1), make(chan int, 1)
	go func() {
		b, _ := io.ReadAll(said)
		r.output <- string(b)
	}()
	go func() {
		_ = r.cmd.Wait()
		r.ended <- statusOf(r.cmd.ProcessState.Sys().(syscall.WaitStatus))
	}()
	if ready := r.one("ready"); ready != "exit" {
		return
	}
	if st := r.status(r.ended); st != 0 {
		t.Fatalf("status %d: %s", st, r.all())
	}
	for pid := range children() {
		if !before[pid] && pid != r.cmd.Process.Pid {
			r.left = pid
		}
	}
	if r.left == 0 {
		t.Fatal("nothing is left behind")
	}
}

// children are the processes whose parent we are.
func children() map[int]bool {
	all := map[int]bool{}
	for _, pid := range netlab.Children(os.Getpid()) {
		if f := netlab.Stat(pid); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			all[pid] = true
		}
	}
	return all
}

// statusOf is the status as a shell has it.
func statusOf(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func (r *replay) until(what string, done func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (r *replay) status(of chan int) int {
	r.t.Helper()
	select {
	case st := <-of:
		return st
	case <-time.After(patience):
		r.t.Fatalf("it does not end")
		return 0
	}
}

// all is what was printed, once nobody can print any more.
func (r *replay) all() string {
	r.t.Helper()
	select {
	case s := <-r.output:
		r.output <- s
		return s
	case <-time.After(patience):
		r.t.Fatal("somebody keeps the output open")
		return ""
	}
}

func (r *replay) awaitReady() {
	t := r.t
	kind, what, _ := strings.Cut(r.one("ready"), " ")
	switch kind {
	case "print":
		if st := r.status(r.ended); st != 0 {
			t.Errorf("status %d", st)
		}
		r.said()
	case "exit":
		r.said()
	case "one":
		_ = r.ready.SetReadDeadline(time.Now().Add(patience))
		if b, err := io.ReadAll(r.ready); err != nil || string(b) != "1" {
			r.kill()
			t.Fatalf("descriptor 3: %q, %v\n%s", b, err, r.all())
		}
	case "none":
		r.until("a process", func() bool { return len(netlab.Children(r.cmd.Process.Pid)) > 0 })
	case "link":
		r.until("the interface", func() bool {
			_, out := r.ns.Run("ip", "-4", "address", "show", "dev", what)
			return strings.Contains(out, "inet ") && strings.Contains(out, "UP")
		})
	default:
		t.Fatalf("ready %s", kind)
	}
}

// said compares what was printed.
func (r *replay) said() {
	r.t.Helper()
	out := r.all()
	for _, want := range r.client["says"] {
		switch {
		case want == "nothing" && out != "":
			r.t.Errorf("it says %q", out)
		case want != "nothing" && !regexp.MustCompile(`(^|\W)`+regexp.QuoteMeta(want)+`($|\W)`).MatchString(out):
			r.t.Errorf("no %q in %s", want, out)
		}
	}
}

// guest compares what a command prints in the guest's namespace: at once where the client
// was told that all is ready, else in time.
func (r *replay) guest(line string) {
	r.t.Helper()
	command, want, _ := strings.Cut(line, " => ")
	told := slices.Contains([]string{"exit", "one"}, r.one("ready"))
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		_, out := r.ns.Run(strings.Fields(command)...)
		if strings.Contains(out, want) {
			return
		}
		if told || time.Now().After(deadline) {
			r.t.Errorf("%s: no %q in\n%s", command, want, out)
			return
		}
	}
}

// checkLeft looks at the process that was left behind.
func (r *replay) checkLeft() {
	t := r.t
	if f := netlab.Stat(r.left); len(f) < 4 || f[3] != strconv.Itoa(r.left) {
		t.Errorf("process %d has no session of its own: %v", r.left, f)
	}
	proc := fmt.Sprintf("/proc/%d/", r.left)
	for name, want := range map[string]string{"cwd": "/", "fd/0": "/dev/null", "fd/1": "/dev/null", "fd/2": "/dev/null"} {
		if to, err := os.Readlink(proc + name); os.IsPermission(err) {
			t.Logf("%s: %v", name, err)
		} else if to != want {
			t.Errorf("%s is %s, %v", name, to, err)
		}
	}
}

// end ends it, as the client does, and looks at what that leaves.
func (r *replay) end() {
	t := r.t
	pid := r.cmd.Process.Pid
	if r.left != 0 {
		pid = r.left
	}
	var err error
	switch how := r.one("ends"); how {
	case "term":
		err = unix.Kill(pid, unix.SIGTERM)
	case "int":
		err = unix.Kill(pid, unix.SIGINT)
	case "kill":
		err = unix.Kill(pid, unix.SIGKILL)
	case "unlink":
		path := filepath.Join(r.dir, "ns")
		if err = unix.Unmount(path, unix.MNT_DETACH); err == nil {
			err = os.Remove(path)
		}
	case "process":
		err = unix.Kill(r.holder, unix.SIGKILL)
	case "data":
		_, err = r.exit.Write([]byte("x"))
	case "closed":
		err = r.exit.Close()
	case "client":
		err = r.hangUp()
	default:
		t.Fatalf("ends %s", how)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.left != 0 {
		r.ended = make(chan int, 1)
		go func() {
			var ws syscall.WaitStatus
			for {
				if _, err := syscall.Wait4(pid, &ws, 0, nil); err != syscall.EINTR {
					break
				}
			}
			r.ended <- statusOf(ws)
		}()
	}
	want, _ := strconv.Atoi(r.one("status"))
	if st := r.status(r.ended); st != want {
		t.Errorf("ended with status %d, want %d\n%s", st, want, r.all())
	}
	r.left = 0
	if !slices.Contains([]string{"exit", "print"}, r.one("ready")) {
		r.said()
	}
	for _, name := range r.client["gone"] {
		r.until(name+" is to go", func() bool {
			_, err := os.Lstat(r.fill(name))
			return os.IsNotExist(err)
		})
	}
}

// hangUp is the end of the client's connection: of END, or else to its socket.
func (r *replay) hangUp() error {
	if strings.Contains(r.one("run"), "--fd 5") {
		return r.ours.Close()
	}
	c, err := net.Dial("unix", filepath.Join(r.dir, "s"))
	if err != nil {
		return err
	}
	return c.Close()
}

// kill ends what is still there.
func (r *replay) kill() {
	if r.left != 0 {
		_ = unix.Kill(r.left, unix.SIGKILL)
		_, _ = syscall.Wait4(r.left, nil, 0, nil)
		r.left = 0
	}
	_ = r.cmd.Process.Kill()
}

// TestEveryWord: each word of the file's format is used by some client.
func TestEveryWord(t *testing.T) {
	used := map[string]bool{}
	for _, c := range read(t) {
		for word := range maps.Keys(c) {
			used[word] = true
		}
	}
	for word := range words {
		if !used[word] {
			t.Errorf("no client has %q", word)
		}
	}
}
