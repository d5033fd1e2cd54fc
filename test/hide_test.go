// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/test/netlab"
)

// unixArg as first argument has the test's binary connect to UNIX sockets.
const unixArg = "dial-unix"

// dialUnix takes a connected socket from each daemon and says what answers there.
func dialUnix(paths []string) int {
	for _, path := range paths {
		fmt.Printf("%s: %s\n", path, viaDaemon(path))
	}
	return 0
}

func viaDaemon(path string) string {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		return err.Error()
	}
	_, passed, err := ipc.Receive(fd, make([]byte, 16), 0)
	if err != nil || passed < 0 {
		return fmt.Sprintf("no socket: %v", err)
	}
	b := make([]byte, 16)
	_ = unix.SetNonblock(passed, false)
	_, _ = unix.Write(passed, []byte("?"))
	n, err := unix.Read(passed, b)
	if err != nil {
		return err.Error()
	}
	return "answer " + string(b[:n])
}

// passSockets is a daemon on the host that hands connections to the remote to
// whoever asks for them.
func passSockets(t *testing.T, lab *netlab.Lab, path string) {
	t.Helper()
	fd := -1
	err := lab.Host.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return err
		}
		return unix.Listen(fd, 16)
	})
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		unix.Close(fd)
		os.Remove(path)
	})
	if path[0] == '/' {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			if far, err := lab.Host.DialError("tcp", "192.0.2.9:7", 5*time.Second); err == nil {
				if f, err := far.(*net.TCPConn).File(); err == nil {
					_ = ipc.Send(c, []byte{0}, int(f.Fd()))
					f.Close()
				}
				far.Close()
			}
			unix.Close(c)
		}
	}()
}

// TestHiddenSockets has a command ask daemons of the host for what the egress rules
// denies it: none is in reach but where the user says so. Those of the abstract
// name space belong to the host's network namespace and never are.
func TestHiddenSockets(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	tellOnce(lab.Remote, "tcp", ":7")
	dir, err := os.MkdirTemp("/tmp", "daemon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	inTmp := filepath.Join(dir, "socket")
	abstract := fmt.Sprintf("@aldente-test-%d", os.Getpid())
	passSockets(t, lab, inTmp)
	passSockets(t, lab, abstract)
	paths := []string{inTmp}
	if !netlab.Nested() {
		inRun := fmt.Sprintf("/run/aldente-test-%d", os.Getpid())
		passSockets(t, lab, inRun)
		paths = append(paths, inRun)
	}
	pasta, hold := netlab.Pasta(), filepath.Join(netlab.Stage(), "hold")
	for _, tt := range []struct {
		name   string
		binary string
		option []string
		before string // what root of the namespace tries first
		reach  bool
	}{
		{"aldente", aldente(), nil, "", false},
		{"aldente, all unmounted", aldente(), nil, "umount -l /tmp; umount -l /run", false},
		{"aldente, told otherwise", aldente(), []string{"--no-hide-sockets"}, "", true},
		{"aldente, same PID namespace", aldente(), []string{"--no-pidns"}, "", false},
		{"pasta", pasta, nil, "", true},
		{"pasta, told otherwise", pasta, []string{"--hide-sockets"}, "", false},
	} {
		for _, user := range []*netlab.User{netlab.Nobody, netlab.Root} {
			t.Run(fmt.Sprintf("%s/uid=%d", tt.name, user.UID), func(t *testing.T) {
				lab := lab.For(t)
				command := []string{hold}
				if tt.before != "" {
					command = []string{"sh", "-c", "exec 3<$0; " + tt.before + "; exec /proc/self/fd/3 \"$@\"", hold}
				}
				args := slices.Concat([]string{tt.binary}, netlab.NoForward(), []string{"--config-net", "--deny", "any"}, tt.option,
					[]string{"--"}, command, []string{unixArg}, paths, []string{abstract})
				// The working directory, where the binary is, stays.
				p := lab.Host.Start(netlab.Spec{Args: args, User: identity(user), Dir: netlab.Stage(), Timeout: 30 * time.Second})
				if st := p.Wait(); st != 0 {
					t.Fatalf("status %d\n%s", st, p.Output())
				}
				for line := range strings.Lines(p.Stdout()) {
					path, got, _ := strings.Cut(strings.TrimSpace(line), ": ")
					if want := tt.reach && path != abstract; (got == "answer ?") != want {
						t.Errorf("%s: %q, in reach: want %v", path, got, want)
					}
				}
				if n := strings.Count(p.Stdout(), "\n"); n != len(paths)+1 {
					t.Errorf("%d answers: %s", n, p.Output())
				}
			})
		}
	}
}

// identity is who a process is to be started as.
func identity(u *netlab.User) *netlab.User {
	if u == netlab.Root {
		return nil
	}
	return u
}

// TestHiddenKeeps looks for what a command needs although /run and /tmp are new:
// its working directory, itself, a place for its files, names, and aldente.
func TestHiddenKeeps(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "getent")
	lab := netlab.New(t, netlab.Options{})
	serveDNS(lab.Host, "127.0.0.53:53")
	dir := openDir(t)
	deep := filepath.Join(dir, "a", "b")
	script := filepath.Join(dir, "script")
	for path, text := range map[string]string{script: "#!/bin/sh\necho run by $0\n", filepath.Join(deep, "file"): "kept\n"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(deep, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		dir     string
		env     []string
		command []string
		want    string
	}{
		{"working directory", deep, nil, []string{"sh", "-c", "pwd; cat file; echo new >made; ls; ls .."},
			deep + "\nkept\nfile\nmade\nb\n"},
		{"working directory is /tmp", "/tmp", nil, []string{"sh", "-c", "pwd; ls | wc -l"}, "/tmp\n0\n"},
		{"elsewhere", "/etc", nil, []string{"sh", "-c", "pwd; ls -A /tmp | wc -l; ls hosts"}, "/etc\n0\nhosts\n"},
		{"command below /tmp", "/", nil, []string{script}, "run by " + script + "\n"},
		{"temporary files", "/", []string{"TMPDIR=/tmp/nowhere"}, []string{"sh", "-c", "f=$(mktemp) && echo x >$f && cat $f; stat -c %a /tmp"}, "x\n1777\n"},
		{"runtime files", "/", []string{"XDG_RUNTIME_DIR=/run/user/1000", "SSH_AUTH_SOCK=/tmp/x"},
			[]string{"sh", "-c", "echo x >$XDG_RUNTIME_DIR/y && cat $XDG_RUNTIME_DIR/y; echo $SSH_AUTH_SOCK; stat -c %a $XDG_RUNTIME_DIR"}, "x\n\n700\n"},
		{"nothing else is new", "/", nil, []string{"sh", "-c", "test -c /dev/null && test -e /etc/passwd && test -d /sys/class && test -d /proc/self && echo all"}, "all\n"},
		{"nested", netlab.Stage(), nil, []string{"./aldente", "--config-net", "--", "./aldente", "--config-net", "--", "sh", "-c", "ls -A /run/user | wc -l"}, "0\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			if tt.name == "working directory" {
				t.Cleanup(func() { os.Remove(filepath.Join(deep, "made")) })
			}
			p := lab.Host.Start(netlab.Spec{Args: slices.Concat([]string{"env"}, tt.env, []string{aldente(), "--config-net", "--"}, tt.command),
				User: netlab.Nobody, Dir: tt.dir, Timeout: 30 * time.Second})
			if st := p.Wait(); st != 0 || p.Stdout() != tt.want {
				t.Errorf("status %d, %q, want %q\n%s", st, p.Stdout(), tt.want, p.Output())
			}
		})
	}
	t.Run("a folder /var/run", func(t *testing.T) {
		lab := lab.For(t)
		p := lab.Host.Start(netlab.Spec{Args: []string{"unshare", "-m", "sh", "-c",
			`mount -t tmpfs tmpfs /var && mkdir /var/run /var/lib && mount -t tmpfs tmpfs /run && touch /var/run/old /var/lib/kept /run/old &&
			"$1" --config-net -- sh -c "ls -A /var /var/lib /var/run /run; umount /var/run /run; ls -A /var/run /run"`,
			"sh", aldente()}, Timeout: 60 * time.Second})
		if st := p.Wait(); st != 0 || strings.Contains(p.Stdout(), "old") || !strings.Contains(p.Stdout(), "kept") {
			t.Errorf("status %d\n%s", st, p.Output())
		}
	})
	t.Run("names by a link into /run", func(t *testing.T) {
		lab := lab.For(t)
		p := lab.Host.Start(netlab.Spec{Args: []string{"unshare", "-m", "sh", "-c",
			`mount -t tmpfs tmpfs /run && mkdir /run/etc /run/r && cp /etc/passwd /etc/group /etc/nsswitch.conf /run/etc &&
			cp "$1" /run/r/resolv.conf && ln -s ../run/r/resolv.conf /run/etc/resolv.conf && mount --bind /run/etc /etc &&
			for o in "" "--dns none"; do "$2" --config-net $o -- sh -c "cat /etc/resolv.conf; getent ahosts www.example.net | head -n 1"; done`,
			"sh", writeStage(t, "nameserver 127.0.0.53\n"), aldente()}, Timeout: 60 * time.Second})
		if st := p.Wait(); st != 0 || !strings.HasPrefix(p.Stdout(), "nameserver 169.254.1.1\n") ||
			!strings.Contains(p.Stdout(), "198.51.100.7") && !strings.Contains(p.Stdout(), "2001:db8::7") ||
			!strings.HasSuffix(p.Stdout(), "nameserver 127.0.0.53\n") {
			t.Errorf("status %d\n%s", st, p.Output())
		}
	})
}
