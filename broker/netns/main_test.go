// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary stands in for the programs that the package starts: as agent
// it says on its channel who it is, and with roleVar set it does one thing.
const roleVar = "ALDENTE_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Args[0] == AgentName {
		agentProbe()
		return
	}
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "create":
		os.Exit(roleCreate(os.Args[1:]))
	case "orphan":
		roleOrphan()
	default:
		// A test by name, under the identity that the parent chose.
		os.Unsetenv(roleVar)
		os.Args = []string{os.Args[0], "-test.run=^" + role + "$", "-test.v"}
		os.Exit(m.Run())
	}
}

// agentProbe answers with what the tests ask about an agent, then waits for the
// end of the channel.
func agentProbe() {
	status, _ := os.ReadFile("/proc/self/status")
	net, _ := os.Readlink("/proc/self/ns/net")
	user, _ := os.Readlink("/proc/self/ns/user")
	cwd, _ := os.Getwd()
	fds, _ := os.ReadDir("/proc/self/fd")
	sid, _ := unix.Getsid(0)
	text := fmt.Sprintf("net %s\nuser %s\ncwd %s\nfds %d\nleader %v\nenv %d\n%s", net, user, cwd, len(fds), sid == os.Getpid(),
		len(os.Environ()), status)
	unix.Write(AgentChannel, []byte(text))
	unix.Read(AgentChannel, make([]byte, 1))
}

// roleCreate runs a command as pasta would and returns its status.
func roleCreate(args []string) int {
	c, err := Create(Command{Path: args[0], Args: args, UID: os.Geteuid(), GID: os.Getegid()})
	if err == nil {
		_, err = c.Ready()
	}
	if err == nil {
		err = c.Release()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	status, err := c.Wait()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return status
}

// roleOrphan starts a command, says its process identifier, and lives on until
// it is killed.
func roleOrphan() {
	c, err := Create(Command{Path: "sleep", Args: []string{"sleep", "60"}, UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		fmt.Println(err)
		return
	}
	if len(os.Args) > 1 {
		c.Ready()
		c.Release()
	}
	fmt.Println(c.PID)
	time.Sleep(time.Minute)
}

// self returns a command that runs the test binary in a role.
func self(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	return cmd
}

// asOthers runs a test again as an unprivileged user, and as user 0 of a user
// namespace, if this process is root; it is called last in such a test.
func asOthers(t *testing.T) {
	t.Helper()
	if os.Getenv("ALDENTE_TEST_OTHER") != "" {
		return
	}
	identities := map[string]*syscall.SysProcAttr{
		"in a user namespace": {
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		},
		"in a user namespace as 1000": {
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getegid(), Size: 1}},
		},
	}
	if os.Geteuid() == 0 {
		identities["unprivileged"] = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	for name, attr := range identities {
		t.Run(name, func(t *testing.T) {
			cmd := self(strings.SplitN(t.Name(), "/", 2)[0])
			cmd.Env = append(cmd.Env, "ALDENTE_TEST_OTHER=1")
			cmd.Dir = "/"
			cmd.SysProcAttr = attr
			out, err := cmd.CombinedOutput()
			switch {
			case err != nil:
				t.Errorf("%v\n%s", err, out)
			case strings.Contains(string(out), "--- SKIP"):
				t.Skipf("%s", out)
			case !strings.Contains(string(out), "--- PASS"):
				t.Errorf("did not run:\n%s", out)
			}
		})
	}
}

// create makes namespaces around a command, or skips the test.
func create(t *testing.T, args ...string) *Child {
	t.Helper()
	c, err := Create(Command{Path: args[0], Args: args, UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	if _, err := c.Ready(); err != nil {
		c.Kill()
		t.Skipf("needs user namespaces: %v", err)
	}
	return c
}
