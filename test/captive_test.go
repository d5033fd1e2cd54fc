// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aldente/test/netlab"
)

// captives returns a folder with programs of which some are built with the
// captive tag, see package policy/captive.
func captives(t *testing.T, which string) string {
	t.Helper()
	needOurs(t)
	dir, err := buildCaptives[which]()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Folders of captives.
const (
	captiveBroker = "captive-broker" // with a real worker
	captiveWorker = "captive-worker" // with a real broker
	captiveDebug  = "captive-debug"  // the same, with filters that trap
	captiveNames  = "captive-names"  // with a broker that tells it its script
)

// buildCaptives makes each folder once, when it is wanted.
var buildCaptives = map[string]func() (string, error){
	captiveBroker: sync.OnceValues(func() (string, error) { return build(captiveBroker, "captive", "none", "none") }),
	captiveWorker: sync.OnceValues(func() (string, error) { return build(captiveWorker, "none", "captive", "none") }),
	captiveDebug: sync.OnceValues(func() (string, error) {
		return build(captiveDebug, "debugfilter", "debugfilter,captive", "debugfilter")
	}),
	captiveNames: sync.OnceValues(func() (string, error) { return build(captiveNames, "captive", "none", "captive") }),
}

// build makes the programs with build tags in a folder that any user may enter.
func build(name, broker, worker, names string) (string, error) {
	dir := filepath.Join(netlab.Stage(), name)
	for _, p := range []struct{ name, tags, pkg string }{
		{"aldente", broker, "aldente/broker"}, {"aldente-worker", worker, "aldente/worker"}, {"aldente-names", names, "aldente/names"},
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-tags", p.tags, "-o", filepath.Join(dir, p.name), p.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", &exec.Error{Name: strings.Join(cmd.Args, " ") + ": " + string(out), Err: err}
		}
	}
	for _, name := range []string{"pasta", "passt"} {
		if err := os.Symlink("aldente", filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

var captivePort atomic.Int32

// tryCaptive has a process try something once it is locked down and returns how
// that ended: "killed" by SIGSYS, or what it said.
func tryCaptive(t *testing.T, lab *netlab.Lab, who, attempt string, args ...string) string {
	t.Helper()
	dir := captives(t, captiveBroker)
	s := netlab.GuestSpec{Binary: filepath.Join(dir, "pasta"), User: netlab.Nobody, Timeout: 20 * time.Second,
		Wrap: []string{"env", "ALDENTE_CAPTIVE=" + who + ":" + attempt}}
	// A new port each time: a killed broker's worker takes a moment to follow.
	port := strconv.Itoa(20000 + int(captivePort.Add(1)))
	args = append(append([]string{"--config-net", "-t", port, "-u", port, "-T", "none", "-U", "none"}, args...), "--", "sleep", "0.05")
	p := lab.For(t).StartPasta(s, args...)
	st := p.Wait()
	if st == 128+31 { // SIGSYS
		return "killed"
	}
	said := saidOf(p, attempt)
	if said == "" {
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	return said
}

// saidOf is how an attempt ended by what a captive's broker has said, if it has.
func saidOf(p *netlab.Proc, attempt string) string {
	for line := range strings.Lines(p.Output()) {
		said, ok := strings.CutPrefix(line, "captive: "+attempt+": ")
		switch {
		case !ok:
		case strings.HasPrefix(said, "killed by bad system call"):
			return "killed"
		default:
			return strings.TrimSuffix(strings.TrimSpace(said), " component=agent")
		}
	}
	return ""
}

// tryCaptiveStream is tryCaptive in a broker that waits for virtual machines.
func tryCaptiveStream(t *testing.T, lab *netlab.Lab, attempt string) string {
	t.Helper()
	path := filepath.Join(os.TempDir(), fmt.Sprintf("captive%d-%d.sock", os.Getpid(), captivePort.Add(1)))
	defer os.Remove(path)
	p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Timeout: 20 * time.Second, Args: []string{"env", "ALDENTE_CAPTIVE=broker:" + attempt,
		filepath.Join(captives(t, captiveBroker), "passt"), "-f", "-s", path}})
	defer p.Kill()
	for !p.Exited() {
		if said := saidOf(p, attempt); said != "" {
			return said
		}
		time.Sleep(5 * time.Millisecond)
	}
	if st := p.Wait(); st != 128+31 { // SIGSYS
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	return "killed"
}

// alike are attempts that end broker and agent both.
var alike = strings.Fields(`
	openat-write openat-proc openat-tun openat-path openat2 memfd_create mkdirat unlinkat renameat2 linkat symlinkat mknodat
	fchmodat fchownat utimensat truncate chdir name-handle inotify fanotify flock lseek-capture
	execve execveat-path chroot pivot_root mount mount-proc umount2 fsopen open_tree move_mount mount_setattr
	ioctl-tap ioctl-flow fcntl-owner
	socket-mptcp socket-unnamed socket-unix connect-status socket-netlink socket-raw socket-packet socket-sctp socket-vsock socket-audit socket-generic
	socket-netlink-diag sendto-aimed sendto-null
	socket-alg socket-xdp socket-high-bits socketpair socketpair-datagram socketpair-inet
	sockopt-mark sockopt-transparent sockopt-ip-options sockopt-rthdr sockopt-by-source
	sockopt-repair sockopt-ulp sockopt-congestion
	mmap-exec mmap-rwx mmap-shared mmap-file mmap-high-bits mprotect-exec mremap madvise-remove madvise-inject
	futex-shared futex-requeue futex-pi splice-gift getsockopt-filter getsockopt-level
	userfaultfd pkey_mprotect memfd_secret remap_file_pages process_madvise mlock
	kill-parent kill-all kill-self tgkill-other tgkill-init tkill pidfd_open pidfd_getfd pidfd-signal-term ptrace ptrace-traceme
	process_vm_readv process_vm_writev kcmp rt_sigqueueinfo
	clone-process clone-newuser clone-thread-user clone3 unshare-user unshare-net
	setns setns-net setns-pid setns-ipc setns-uts setns-cgroup
	setuid setresgid setgroups setpriority sched_setscheduler sched_setaffinity prlimit-other
	bpf perf_event_open io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key
	prctl-seccomp prctl-dumpable prctl-ambient prctl-mdwe-off prctl-pdeathsig prctl-keepcaps prctl-ptracer seccomp seccomp-filter
	init_module finit_module delete_module kexec_load reboot swapon acct quotactl syslog sethostname setdomainname
	settimeofday clock_settime adjtimex personality shmget msgget semget mq_open nosys`)

// outcomes are those that differ.
var outcomes = map[string]map[string]string{
	"broker": {
		// Landlock: the call is there for a new worker's runtime.
		"openat": "EACCES", "openat-etc": "EACCES", "openat-self": "EACCES", "openat-environ": "EACCES",
		"execveat-self": "EACCES",
		// No capability.
		"capset": "EPERM", "prlimit": "EPERM", "clone-worker": "EPERM",
		// The kernel: a process with threads joins no user namespace, and
		// without capabilities none of another kind.
		"setns-user": "EINVAL", "setns-mnt": "EPERM",
		"read-caps": "succeeded",
		// What channels are made of leads nowhere else.
		"pair-connect": "EINVAL",
		// It joins groups for the guest, and makes sockets that send to everybody. It has none
		// of either here: the call is made, and finds no socket.
		"sockopt-broadcast": "EBADF", "sockopt-membership": "EBADF",
	},
	"agent": {
		"openat": "killed", "openat-etc": "killed", "openat-self": "killed", "openat-environ": "killed",
		"execveat-self": "killed", "capset": "killed", "prlimit": "killed", "clone-worker": "killed",
		"setns-user": "killed", "setns-mnt": "killed", "landlock": "killed",
		// It makes sockets and binds them, no more.
		"connect": "killed", "reconnect": "killed", "disconnect": "killed", "connect-listener": "killed",
		"accept-plain": "killed", "accept4-blocking": "killed", "sendmmsg": "killed",
		"getsockopt-other": "killed", "socket-echo": "killed", "pair-connect": "killed",
		"sockopt-broadcast": "killed", "sockopt-membership": "killed",
	},
}

// TestCaptives has broker and agent try, from inside their finished
// confinement, what captured code might. That of the worker is
// broker/supervise's.
func TestCaptives(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for who, special := range outcomes {
		if n := len(alike) + len(special); n < 60 {
			t.Errorf("%s: only %d attempts", who, n)
		}
		for _, attempt := range alike {
			special[attempt] = "killed"
		}
		for attempt, want := range special {
			t.Run(who+"/"+attempt, func(t *testing.T) {
				if got := tryCaptive(t, lab, who, attempt); got != want {
					t.Errorf("%s, want %s", got, want)
				}
			})
		}
	}
}

// TestCaptivesStream has the broker try the same where it serves virtual
// machines.
func TestCaptivesStream(t *testing.T) {
	heavy(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	want := maps.Clone(outcomes["broker"])
	for _, attempt := range alike {
		want[attempt] = "killed"
	}
	for attempt, want := range want {
		t.Run(attempt, func(t *testing.T) {
			if got := tryCaptiveStream(t, lab, attempt); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}

// TestLayersBehindBrokersFilter leaves the filter out: no layer may rely on
// another.
func TestLayersBehindBrokersFilter(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	t.Setenv("ALDENTE_CAPTIVE_SKIP", "seccomp")
	for attempt, want := range map[string]string{
		"openat-etc":   "EACCES", // Landlock
		"openat-write": "EACCES",
		"openat-proc":  "EACCES",
		"openat-tun":   "EACCES",
		"execve":       "EACCES",
		"mount":        "EPERM",
		"pivot_root":   "EPERM",
		"chroot":       "EPERM", // no capability
		"unshare-net":  "EPERM",
		"sethostname":  "EPERM",
		"socket-raw":   "EPERM",
		"reboot":       "EPERM",
		"capset":       "EPERM",
		"ptrace":       "EPERM",
		// Its own status socket was made before it was confined.
		"connect-status": "EPERM",
		"mmap-rwx":       "EACCES", // memory-deny-write-execute
	} {
		t.Run(attempt, func(t *testing.T) {
			if got := tryCaptive(t, lab, "broker", attempt); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}
