// SPDX-License-Identifier: Apache-2.0

package test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// windowsEnv has TestWindows stop before every system call, not only around those
// that change what others may do.
const windowsEnv = "ALDENTE_WINDOWS"

// controlArg stands for a control socket in a folder of its own, in window.args.
const controlArg = "control.sock"

// Users of TestWindows besides netlab.Nobody, who is the ordinary one.
var (
	realNobody = &netlab.User{UID: 65534, GID: 65534}
	stranger   = &netlab.User{UID: 61235, GID: 61235}
)

// looker is a hostile process.
type looker struct {
	user  *netlab.User
	guest bool // as user 0 of the user namespace of the guest, in our PID namespace
	bare  bool // and the agent's program is one that its user may read, so that it may trace the agent
	kills bool // it may signal: it is the same user
}

// window is a start-up that is looked at.
type window struct {
	name    string
	user    *netlab.User // who starts it
	passt   bool
	target  string // "": a command, "PID", "path", "netns" (a path of that namespace alone)
	args    []string
	lookers []looker
	program string // where the programs are, empty: as they are installed
}

// TestWindows starts an instance in every way there is, stops each of its processes
// wherever something has changed, or is about to, until every looker has been through,
// kills the worker, and does the same with the next. Nobody may have seen anything.
func TestWindows(t *testing.T) {
	needRoot(t)
	heavy(t)
	others := []looker{{user: realNobody}, {user: stranger}}
	guest := looker{user: netlab.Nobody, guest: true, kills: true}
	ofRoots := looker{user: netlab.Nobody, guest: true}
	of := func(l looker) []looker { return append([]looker{l}, others...) }
	readable := guest
	readable.bare = true
	usersOwn := programs(t, 0o755, netlab.Nobody)
	for _, w := range []window{
		{"command, sockets hidden", netlab.Nobody, false, "", []string{"--hide-sockets"}, others, ""},
		{"PID", netlab.Nobody, false, "PID", nil, of(guest), ""},
		{"path", netlab.Nobody, false, "path", nil, of(guest), ""},
		{"PID, control socket", netlab.Nobody, false, "PID", []string{"-c", controlArg}, of(guest), ""},
		{"passt", netlab.Nobody, true, "", nil, others, ""},
		{"root's command, sockets hidden", netlab.Root, false, "", []string{"--hide-sockets"}, others, ""},
		{"root's PID", netlab.Root, false, "PID", nil, of(ofRoots), ""},
		{"root's PID, control socket", netlab.Root, false, "PID", []string{"-c", controlArg}, of(ofRoots), ""},
		{"root's path", netlab.Root, false, "path", nil, of(ofRoots), ""},
		{"root's path, without user namespace", netlab.Root, false, "netns", nil, of(ofRoots), ""},
		{"root's passt", netlab.Root, true, "", nil, others, ""},
		{"command as another", netlab.Root, false, "", []string{"--runas", "61236:61236"}, others, ""},
		{"passt as another", netlab.Root, true, "", []string{"--runas", "61236:61236"}, others, ""},
		{"command, one's own program", netlab.Nobody, false, "", nil, others, usersOwn},
		{"PID, one's own program", netlab.Nobody, false, "PID", nil, of(readable), usersOwn},
	} {
		t.Run(w.name, func(t *testing.T) { w.run(t, netlab.New(t, netlab.Options{NoRemote: true})) })
	}
}

// argv is the command line, for the process or namespace given.
func (w *window) argv(t *testing.T, holder int) []string {
	dir := cmp.Or(w.program, filepath.Dir(netlab.Pasta()))
	if w.passt {
		return append([]string{filepath.Join(dir, "passt"), "-f", "-s", filepath.Join(openDir(t), "s")}, w.args...)
	}
	argv := append([]string{filepath.Join(dir, "pasta"), "-f", "--config-net"}, netlab.NoForward()...)
	for _, a := range w.args {
		if a == controlArg {
			a = filepath.Join(openDir(t), a)
		}
		argv = append(argv, a)
	}
	switch w.target {
	case "PID":
		return append(argv, strconv.Itoa(holder))
	case "path":
		dir := fmt.Sprintf("/proc/%d/ns/", holder)
		return append(argv, "--userns", dir+"user", "--netns", dir+"net")
	case "netns":
		return append(argv, "--netns-only", "--netns", fmt.Sprintf("/proc/%d/ns/net", holder))
	}
	return append(argv, "--", commandName, "100")
}

func (w *window) run(t *testing.T, lab *netlab.Lab) {
	guest := 0
	if w.target != "" {
		guest = holder(t, lab)
	}
	dir := openDir(t)
	ctl, err := openControl(filepath.Join(dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "found")
	if err := os.WriteFile(out, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(out, 0o666)
	for i, l := range w.lookers {
		argv := []string{filepath.Join(netlab.Stage(), "hold"), lookArg, filepath.Join(dir, "control"), out, strconv.Itoa(i), "-"}
		if l.kills {
			argv[5] += "kills"
		}
		if l.guest {
			if argv[5] += "guest"; l.bare {
				argv[5] += "bare"
			}
			argv = append([]string{"nsenter", "-t", strconv.Itoa(guest), "-U", "--preserve-credentials", "--"}, argv...)
		}
		p := lab.Host.Start(netlab.Spec{Args: argv, User: l.user, Timeout: 5 * time.Minute})
		defer p.Kill()
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	tr := &tracer{ctl: ctl, lookers: len(w.lookers), every: os.Getenv(windowsEnv) != "", spawns: !w.passt && w.target == "", threads: map[int]*thread{}}
	err = lab.Host.Do(func() error {
		// The thread is this goroutine's until the end of it.
		if err := tr.start(w.argv(t, guest), w.user, log); err != nil {
			return err
		}
		defer tr.end()
		first, err := tr.settleWith("aldente-worker", 0)
		if err != nil {
			return err
		}
		_ = unix.Kill(first, unix.SIGKILL)
		_, err = tr.settleWith("aldente-worker", first)
		return err
	})
	said, _ := os.ReadFile(log.Name())
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	found, _ := os.ReadFile(out)
	for line := range strings.Lines(string(found)) {
		t.Error(strings.TrimSpace(line))
	}
	for i := range w.lookers {
		if ctl.passes[i].Load() == 0 {
			t.Errorf("looker %d did not look", i)
		}
	}
	t.Logf("%d stops", tr.stops)
}

// TestCommandSeesNothing: a command with our own PID namespace in sight, and user 0
// of its user namespace, can look into none of our processes.
func TestCommandSeesNothing(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	script := fmt.Sprintf("exec %s %s $PPID", filepath.Join(netlab.Stage(), "hold"), lookArg)
	for _, u := range []*netlab.User{netlab.Nobody, netlab.Root} {
		if u == netlab.Root && netlab.Nested() {
			continue
		}
		argv := append([]string{netlab.Pasta(), "--config-net", "--no-pidns"}, netlab.NoForward()...)
		p := lab.Host.Start(netlab.Spec{User: u, Timeout: time.Minute, Args: append(argv, "--", "sh", "-c", script)})
		if st := p.Wait(); st != 0 || !strings.Contains(p.Output(), "looked around") {
			t.Errorf("user %d: status %d\n%s", u.UID, st, p.Output())
		}
	}
}

// programs makes copies of the programs, for an instance to be started with that are
// not as they are installed.
func programs(t *testing.T, mode os.FileMode, owner *netlab.User) (dir string) {
	t.Helper()
	dir = openDir(t)
	for name, mode := range map[string]os.FileMode{"aldente": mode, "aldente-worker": 0o755, "aldente-names": 0o755} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(netlab.Pasta()), name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		err = os.WriteFile(path, b, 0o700)
		if err == nil && owner != netlab.Root {
			err = os.Chown(path, int(owner.UID), int(owner.GID))
		}
		if err == nil {
			err = os.Chmod(path, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"pasta", "passt"} {
		if err := os.Symlink("aldente", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// agentOf waits for a broker's agent.
func agentOf(t *testing.T, broker int) int {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		for _, p := range childrenOf(broker) {
			if nameOf(fmt.Sprintf("/proc/%d/", p)) == "aldente-agent" {
				return p
			}
		}
	}
	t.Fatal("no agent")
	return 0
}

// TestProgramStaysAsItIs: user 0 of a guest that is the same user as the caller opens
// the agent's program, which is the caller's own file, and writes to it once nothing
// runs it any more.
func TestProgramStaysAsItIs(t *testing.T) {
	needRoot(t)
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	program := filepath.Join(programs(t, 0o755, netlab.Nobody), "pasta")
	before, _ := os.ReadFile(program)
	guest := holder(t, lab)
	argv := append([]string{program, "-f", "--config-net"}, netlab.NoForward()...)
	broker := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: append(argv, strconv.Itoa(guest))})
	agent := agentOf(t, broker.PID)
	script := fmt.Sprintf(`exec 9</proc/%d/exe && echo opened; kill -9 %d; sleep 0.5; echo overwritten >/proc/self/fd/9`, agent, broker.PID)
	p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{"nsenter", "-t", strconv.Itoa(guest), "-U", "--preserve-credentials", "--",
		"bash", "-c", script}})
	p.Wait()
	if !strings.Contains(p.Output(), "opened") {
		t.Skipf("the agent's program is out of reach:\n%s", p.Output())
	}
	after, err := os.ReadFile(program)
	if err != nil || string(after) != string(before) {
		t.Errorf("the caller's program was overwritten, %v", err)
	}
	if !strings.Contains(p.Output(), "Read-only") {
		t.Errorf("unexpected: %s", p.Output())
	}
}
