// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// journal listens where the system's journal does for programs that inJournal starts,
// and returns what has come so far, an event each.
func journal(t *testing.T, dir string) func() []string {
	t.Helper()
	path := filepath.Join(dir, "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []string
	go func() { // at once: the queue of such a socket is short
		for b := make([]byte, 1<<18); ; {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, string(b[:n]))
			mu.Unlock()
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// inJournal is a command line that runs another as nobody, in a file system whose
// journal is in dir. With stderr, standard error leads there.
func inJournal(dir string, stderr bool, args ...string) []string {
	script := `mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind "$1" /run/systemd/journal && shift &&`
	if stderr {
		script += ` exec 2>>"$1" && shift && export JOURNAL_STREAM="$(stat -L -c %d:%i /dev/stderr)" &&`
		args = append([]string{filepath.Join(dir, "stderr")}, args...)
	}
	script += ` exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`
	return append([]string{"unshare", "-m", "sh", "-c", script, "sh", dir}, args...)
}

// TestJournalFieldsOfRun: where standard error is the journal's, and in the background
// where the system log is, the journal has each event with its values as fields, also
// those of a process that is confined.
func TestJournalFieldsOfRun(t *testing.T) {
	needOurs(t)
	needRoot(t)
	netlab.Have(t, "setpriv")
	netlab.Have(t, "unshare")
	lab := netlab.New(t, netlab.Options{})
	for _, foreground := range []bool{true, false} {
		t.Run(fmt.Sprintf("foreground %t", foreground), func(t *testing.T) {
			lab, dir := lab.For(t), openDir(t)
			read := journal(t, dir)
			args := []string{filepath.Join(filepath.Dir(netlab.Pasta()), "passt"), "-d", "-s", filepath.Join(dir, "guest"), "-P", filepath.Join(dir, "pid")}
			if foreground {
				args = append(args, "-f")
			}
			p := lab.Host.Start(netlab.Spec{Args: inJournal(dir, foreground, args...), Timeout: 60 * time.Second})
			if !eventually(20*time.Second, func() bool { st, err := os.Stat(filepath.Join(dir, "pid")); return err == nil && st.Size() > 0 }) {
				t.Fatalf("does not start:\n%s\n%q", p.Output(), read())
			}
			// A client that comes and goes is an event of the confined process.
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "guest")})
			}
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			event := regexp.MustCompile(`^MESSAGE=client connected pid=\d+ uid=0\nPRIORITY=6\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=passt\nSYSLOG_PID=\d+\nALDENTE_PID=\d+\nALDENTE_UID=0\n$`)
			found := func() (n int) {
				for _, e := range read() {
					if event.MatchString(e) {
						n++
					}
				}
				return n
			}
			if !eventually(20*time.Second, func() bool { return found() == 1 }) {
				t.Errorf("%d events:\n%q", found(), read())
			}
			if layers := strings.Count(strings.Join(read(), ""), "\nALDENTE_COMPONENT=worker\n"); foreground && layers == 0 {
				t.Errorf("nothing of the worker:\n%q", read())
			}
			// Where the journal's queue is full, the stream takes lines.
			if b, err := os.ReadFile(filepath.Join(dir, "stderr")); foreground && (err != nil || strings.Contains(string(b), "client connected")) {
				t.Errorf("standard error has %q, %v", b, err)
			}
			if !foreground {
				readPID(t, filepath.Join(dir, "pid"))
			}
		})
	}
}
