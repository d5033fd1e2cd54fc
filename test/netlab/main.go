// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
)

// helperArg as first argument makes the binary the command of a guest.
const helperArg = "netlab-hold"

// nestedEnv tells the re-executed binary that it is in a user namespace made
// for it.
const nestedEnv = "ALDENTE_TEST_NESTED"

// PastaEnv names the environment variable that selects another pasta.
const PastaEnv = "ALDENTE_PASTA"

var (
	stage  string // readable by any user; holds this binary and those under test
	pasta  string
	holder string
	noBin  error // why there is no pasta to test
)

// Nested reports whether the tests run as an unprivileged user, as root of a
// user namespace of their own.
func Nested() bool { return os.Getenv(nestedEnv) != "" }

// Main runs the tests of a binary that uses this package and returns the
// status to exit with.
func Main(run func() int) int {
	if len(os.Args) == 3 && os.Args[1] == helperArg {
		return hold(os.Args[2])
	}
	if len(os.Args) == 5 && os.Args[1] == chaosArg {
		size, err := strconv.ParseInt(os.Args[4], 10, 64)
		if err = errors.Join(err, chaosEnd(os.Args[2], os.Args[3], size)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if os.Geteuid() != 0 {
		return nest()
	}
	var err error
	if stage, err = os.MkdirTemp("", "netlab"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(stage)
	noBin = prepare()
	return run()
}

// prepare puts what an unprivileged user has to execute where that user can.
func prepare() error {
	if err := os.Chmod(stage, 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	holder = filepath.Join(stage, "hold")
	if err := copyFile(holder, self); err != nil {
		return err
	}
	if pasta = os.Getenv(PastaEnv); pasta != "" {
		_, err := os.Stat(pasta)
		return err
	}
	dir, err := findBin()
	if err != nil {
		return err
	}
	for _, name := range []string{"aldente", "aldente-worker", "aldente-names", "aldentectl"} {
		if err := copyFile(filepath.Join(stage, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%w (run make first)", err)
		}
	}
	if err := os.Chmod(filepath.Join(stage, "aldente"), 0o711); err != nil { // as make install has it
		return err
	}
	for _, name := range []string{"pasta", "passt", "slirp4netns"} {
		if err := os.Symlink("aldente", filepath.Join(stage, name)); err != nil {
			return err
		}
	}
	if err := os.Symlink("aldentectl", filepath.Join(stage, "pesto")); err != nil {
		return err
	}
	pasta = filepath.Join(stage, "pasta")
	return nil
}

// findBin returns the repository's bin folder, from any folder below its root.
func findBin() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "bin"), nil
		}
	}
	return "", fmt.Errorf("not inside the repository")
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// Pasta returns the path of the program under test.
func Pasta() string { return pasta }

// Ours reports whether that is this repository's own program.
func Ours() bool { return os.Getenv(PastaEnv) == "" }

// Stage returns a folder that any user may enter, removed at the end.
func Stage() string { return stage }

// nest re-executes the binary as root of new user, network and mount
// namespaces, where it may make further ones.
func nest() int {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), nestedEnv+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	err := c.Run()
	if c.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "netlab: no user namespace can be made here, tests are left out:", err)
		return 0
	}
	return c.ProcessState.ExitCode()
}

// hold is the command of a guest: it reports to the socket at path, which
// tells its process id by credentials, and waits for the connection's end.
func hold(path string) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP)
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "netlab hold:", err)
		return 1
	}
	if _, err := c.Write([]byte{'!'}); err != nil {
		return 1
	}
	_, _ = c.Read(make([]byte, 1))
	return 0
}
