// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// TestWrongInvocations: what cannot work is told in one line, which says what to do
// instead. Command lines that are wrong by themselves are in broker/cli/testdata/
// script/wrong.txtar.
func TestWrongInvocations(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "prlimit", "unshare", "setpriv")
	lab := netlab.New(t, netlab.Options{})
	dir := openDir(t)
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Dir(netlab.Pasta())
	pasta, passt := filepath.Join(bin, "pasta"), filepath.Join(bin, "passt")
	// The same programs without their worker, and with one that cannot be executed.
	for _, name := range []string{"alone", "useless"} {
		copyTo(t, netlab.Pasta(), filepath.Join(dir, name, "pasta"), 0o755)
	}
	copyTo(t, netlab.Pasta(), filepath.Join(dir, "useless", "aldente-worker"), 0o644)
	none := netlab.NoForward()
	run := func(args ...string) []string { return append(append([]string{pasta}, none...), args...) }
	limited := func(limit string, args ...string) []string {
		return append([]string{"prlimit", limit}, run(args...)...)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		status int
		want   string // one line
		root   bool   // run by root
	}{
		{"namespace that is not there", run("--netns", "/nonexistent"), 1, `^cannot open network namespace /nonexistent: no such file or directory \(is the process or namespace still there\?\)$`, false},
		{"named namespace that is not there", run("--netns", "nosuch"), 1, `/run/netns/nosuch: .* \(is the process or namespace still there\?\)$`, false},
		{"file for a namespace", run("--netns", plain), 1, ` is not a network namespace$`, false},
		{"process that is not there", run("4194304"), 1, `still there\?\)$`, false},
		{"command that is not there", run("--", "nosuchcommand"), 1, `^failed to start nosuchcommand: .* \(is it installed, in PATH, and executable\?\)$`, false},
		{"command that is no program", run("--", plain), 1, `: permission denied \(it has to be executable: chmod \+x\)$`, false},
		{"interface that is not there", run("-i", "nosuch", "--", "true"), 1, `^interface "nosuch": no such device \("ip link" lists them\)$`, false},
		{"log in no directory", run("-l", "/nonexistent/log", "--", "true"), 1, `^log file /nonexistent/log: no such file or directory \(create the directory first\)$`, false},
		{"log that may not be written", run("-l", "/etc/passwd", "--", "true"), 1, `permission denied \(name one that this user may write\)$`, false},
		{"PID file in no directory", run("-P", "/nonexistent/pid", "--", "true"), 1, `^PID file /nonexistent/pid: .* \(create the directory first\)$`, false},
		{"capture that may not be written", run("-p", "/etc/passwd", "--", "sh", "-c", "exit 5"), 5, `^no packet capture path=/etc/passwd error="permission denied \(name one that this user may write\)"$`, false},
		{"source address of somebody else", run("-o", "192.0.2.77", "--", "sh", "-c", "exit 5"), 5, `^-o 192\.0\.2\.77 is no address of this host \(see "ip address"\): until it is one, no connection can be opened$`, false},
		{"MTU too small for IPv6", run("--config-net", "-m", "1000", "--", "sh", "-c", "ip -4 address | grep -q 192.0.2 && exit 5"), 5, `^MTU 1000 is too small for IPv6 \(minimum 1280\)$`, false},
		{"another user without root", run("--runas", "0", "--", "true"), 1, `^--runas: only root can run as another user: start as root, or leave it out$`, false},
		{"low port", append([]string{pasta}, "-t", "80", "-u", "none", "-T", "none", "-U", "none", "--", "true"), 1, `CAP_NET_BIND_SERVICE`, false},
		{"socket in no directory", []string{passt, "-f", "-s", "/nonexistent/socket"}, 1, `^cannot bind socket /nonexistent/socket: .* \(create the directory first\)$`, false},
		{"file in the socket's place", []string{passt, "-f", "-s", plain}, 1, `\(a file of that name is in the way: remove it, or name another path with -s\)$`, false},
		{"descriptor that is not open", []string{passt, "-f", "-F", "99"}, 1, `^descriptor 99: no such descriptor is open: whoever starts the program has to pass it on, without close-on-exec$`, false},
		{"descriptor that is no socket", []string{passt, "-f", "-F", "0"}, 1, `^descriptor 0 is not a socket: `, false},
		{"worker missing", append([]string{filepath.Join(dir, "alone", "pasta")}, append(none, "--", "true")...), 1, `^aldente-worker is not installed: it belongs into .* \(make all builds all programs, make install installs them\)$`, false},
		{"worker not executable", append([]string{filepath.Join(dir, "useless", "pasta")}, append(none, "--", "true")...), 1, `/useless/aldente-worker cannot be executed by this user: it has to be executable \(chmod 755\)`, false},
		{"few processes", limited("--nproc=12", "--", "true"), 1, `^the limit on processes \(ulimit -u\) is 12, of which \d+ are left: \d+ are needed, threads included; raise it`, true},
		{"processes as few as can be", limited("--nproc=30", "--strict", "--config-net", "--", "sh", "-c", "exit 5"), 5, `^$`, true},
		{"few descriptors", limited("--nofile=64", "--", "true"), 1, `^the limit on open files \(ulimit -Hn\) is 64: at least 128 are needed`, false},
		{"little address space", limited("--as=2000000000", "--", "true"), 1, `^the limit on address space \(ulimit -v\) is 1953125 kB: at least`, false},
		{"little data", limited("--data=2000000000", "--", "true"), 1, `^the limit on data \(ulimit -d\) is`, false},
		{"small log file", append([]string{"prlimit", "--fsize=100"}, run("-l", filepath.Join(dir, "log"), "--", "true")...), 1, `the limit on file sizes \(ulimit -f\) is 100 bytes: raise it$`, false},
		{"no user namespaces", run("--", "true"), 1, `^cannot create namespaces: no space left on device \(user namespaces are disabled: raise sysctl user\.max_user_namespaces\)$`, true},
		{"no tun device", run("--config-net", "--", "true"), 1, `^cannot open /dev/net/tun \(load the module: modprobe tun; in a container, pass the device on\): no such file or directory$`, true},
		{"tun device of root", run("--config-net", "--", "true"), 1, `^cannot open /dev/net/tun \(needs mode 0666, as distributions ship it\): permission denied$`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := netlab.Spec{Args: tt.args, User: netlab.Nobody, Timeout: 20 * time.Second}
			if tt.name == "another user without root" || tt.name == "low port" {
				needRoot(t) // root of a user namespace may do both
			}
			if tt.root {
				needRoot(t)
				spec.Args, spec.User = without(tt.name, tt.args), nil
			}
			p := lab.For(t).Host.Start(spec)
			st := p.Wait()
			out := strings.TrimSuffix(p.Output(), "\n")
			if st != tt.status || !regexp.MustCompile(tt.want).MatchString(out) || strings.Contains(out, "\n") {
				t.Errorf("status %d, want %d, and one line %s:\n%s", st, tt.status, tt.want, out)
			}
		})
	}
}

// without takes something away from the system that a command sees, and has it
// run as an ordinary user.
func without(what string, args []string) []string {
	// Nobody else's: its processes count.
	const stranger = "2000064124"
	nobody := []string{"setpriv", "--reuid=" + stranger, "--regid=" + stranger, "--clear-groups"}
	script := map[string]string{
		"no user namespaces": `echo 0 >/proc/sys/user/max_user_namespaces`,
		"no tun device":      `mount -t tmpfs tmpfs /dev/net`,
		"tun device of root": `mount -t tmpfs -o mode=755 tmpfs /dev/net && mknod -m 600 /dev/net/tun c 10 200`,
	}[what]
	if script == "" {
		return append(nobody, args...)
	}
	unshare := []string{"unshare", "-m"}
	if what == "no user namespaces" {
		// A user namespace of its own, whose setting is nobody else's.
		unshare, nobody = []string{"unshare", "-U", "-r", "-m"}, nil
	}
	return append(append(append(unshare, "sh", "-c", script+` && exec "$@"`, "sh"), nobody...), args...)
}

// copyTo copies a program, into a directory that is made for it.
func copyTo(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	if real, err := filepath.EvalSymlinks(from); err == nil {
		from = real
	}
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, mode); err != nil {
		t.Fatal(err)
	}
	_ = unix.Chmod(filepath.Dir(to), 0o755)
}
