// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// managerArg has the test's binary be as much of a service manager as there has to be for a
// service: it opens sockets, and has instances use them, one after the other. Its arguments:
// how many instances, the sockets ("4 ADDRESS PORT", "6", "46" or "unix PATH", a comma
// between), and what to run.
const managerArg = "service-manager"

func manager(args []string) int {
	count, _ := strconv.Atoi(args[0])
	var sockets []*os.File
	names := ""
	for i, spec := range strings.Split(args[1], ",") {
		fd, err := opened(strings.Fields(spec))
		if err != nil {
			fmt.Println(spec, err)
			return 2
		}
		sockets = append(sockets, os.NewFile(uintptr(fd), spec))
		names += fmt.Sprintf("s%d:", i)
	}
	fmt.Println("listening")
	status := 0
	for range count {
		c := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, args[2:]...)...)
		c.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(sockets)), "LISTEN_FDNAMES="+strings.TrimSuffix(names, ":"), "LISTEN_PID=")
		c.ExtraFiles, c.Stdout, c.Stderr = sockets, os.Stdout, os.Stderr
		_ = c.Run()
		status = c.ProcessState.ExitCode()
	}
	return status
}

// opened makes a socket that listens.
func opened(spec []string) (int, error) {
	if spec[0] == "unix" {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		return fd, errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: spec[1]}), os.Chmod(spec[1], 0o600), unix.Listen(fd, 16))
	}
	addr, err := netip.ParseAddr(spec[1])
	if err != nil {
		return -1, err
	}
	port, err := strconv.Atoi(spec[2])
	if err != nil {
		return -1, err
	}
	domain, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.As16(), Port: port})
	if spec[0] == "4" {
		domain, at = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.As4(), Port: port}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	if domain == unix.AF_INET6 {
		only := 0
		if spec[0] == "6" {
			only = 1
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	return fd, errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, at), unix.Listen(fd, 16))
}

// managed starts a manager on the lab's host, and waits until it listens.
func managed(t *testing.T, lab *netlab.Lab, count int, sockets string, args ...string) *netlab.Proc {
	t.Helper()
	p := lab.Host.Start(netlab.Spec{Args: append([]string{filepath.Join(netlab.Stage(), "hold"), managerArg, fmt.Sprint(count), sockets}, args...), User: netlab.Nobody, Timeout: time.Minute})
	t.Cleanup(p.Kill)
	for deadline := time.Now().Add(20 * time.Second); !strings.HasPrefix(p.Stdout(), "listening"); time.Sleep(5 * time.Millisecond) {
		if p.Exited() || time.Now().After(deadline) {
			t.Fatalf("does not listen: %s", p.Output())
		}
	}
	return p
}

// TestSocketActivation: a port that a service manager has opened is the guest's, from before
// the first instance to behind the last: no client finds it closed. Until the guest's server
// listens it is reset, by the guest.
func TestSocketActivation(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for name, tt := range map[string]struct{ socket, option, addr string }{
		"both families":   {"46 :: 4431", "4431:80", net.JoinHostPort(netlab.Host4, "4431")},
		"IPv6 of both":    {"46 :: 4432", "4432:80", net.JoinHostPort(netlab.Host6, "4432")},
		"one of IPv4":     {"4 " + netlab.Host4 + " 4433", netlab.Host4 + "/4433:80", net.JoinHostPort(netlab.Host4, "4433")},
		"one of IPv6":     {"6 " + netlab.Host6 + " 4434", netlab.Host6 + "/4434:80", net.JoinHostPort(netlab.Host6, "4434")},
		"host's loopback": {"46 :: 4435", "4435:80", "127.0.0.1:4435"},
	} {
		t.Run(name, func(t *testing.T) {
			lab := lab.For(t)
			from, family := lab.Remote, "-4"
			switch {
			case strings.HasPrefix(tt.addr, "127."):
				from = lab.Host
			case strings.HasPrefix(tt.addr, "["):
				family = "-6"
			}
			server := `echo "$LISTEN_FDS$LISTEN_PID$LISTEN_FDNAMES." | nc ` + family + ` -N -l 80`
			p := managed(t, lab, 2, tt.socket, netlab.Pasta(), "-q", "--config-net", "-t", tt.option, "-u", "none", "-T", "none", "-U", "none", "--", "sh", "-c", server)
			for i := range 2 {
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					c, err := from.DialError("tcp", tt.addr, 20*time.Second)
					if errors.Is(err, unix.ECONNRESET) {
						continue // connected, and reset before anybody has looked
					}
					if err != nil {
						t.Fatalf("instance %d: %v: %s", i, err, p.Output())
					}
					_ = c.SetDeadline(deadline)
					got, err := io.ReadAll(c)
					c.Close()
					if string(got) == ".\n" && err == nil {
						break
					}
					if len(got) > 0 || time.Now().After(deadline) {
						t.Fatalf("instance %d: got %q, %v: %s", i, got, err, p.Output())
					}
				}
			}
			if st := p.Wait(); st != 0 {
				t.Errorf("status %d: %s", st, p.Output())
			}
		})
	}
}

// TestSocketsWithoutUse: a socket that no option asks for is an error, since whoever connects
// would wait for ever; one line says what to do.
func TestSocketsWithoutUse(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := openDir(t)
	passt := filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
	none := []string{"-u", "none", "-T", "none", "-U", "none", "--config-net"}
	for name, tt := range map[string]struct {
		sockets string
		argv    []string
		want    string
	}{
		"no option":         {"46 :: 4441", append([]string{netlab.Pasta(), "-t", "none"}, none...), `socket 3 of the service manager, "s0" listens at [::]:4441, and no -t does just that (add -t 4441; `},
		"another port":      {"46 :: 4442", append([]string{netlab.Pasta(), "-t", "4443"}, none...), "(add -t 4442; "},
		"one family":        {"4 0.0.0.0 4444", append([]string{netlab.Pasta(), "-t", "0.0.0.0/4445"}, none...), "(add -t 4444 with -4, "},
		"an address":        {"4 127.0.0.1 4446", append([]string{netlab.Pasta(), "-t", "none"}, none...), "(add -t 127.0.0.1/4446)"},
		"a namespace":       {"unix " + dir + "/a", append([]string{netlab.Pasta(), "-t", "none"}, none...), "that is for virtual machines which connect"},
		"another path":      {"unix " + dir + "/b", []string{passt, "-f", "-s", dir + "/c"}, "leave -s out"},
		"two":               {"unix " + dir + "/d,unix " + dir + "/e", []string{passt, "-f"}, `"s1" is a second UNIX socket`},
		"in the background": {"unix " + dir + "/f", []string{passt}, "add -f"},
	} {
		t.Run(name, func(t *testing.T) {
			argv := tt.argv
			if argv[0] != passt {
				argv = append(argv, "--", "true")
			}
			p := managed(t, lab.For(t), 1, tt.sockets, argv...)
			st := p.Wait()
			said := strings.TrimPrefix(p.Output(), "listening\n")
			if st != 1 || !strings.Contains(said, tt.want) || strings.Count(said, "\n") != 1 {
				t.Errorf("status %d: %s", st, said)
			}
		})
	}
}

// TestGuestSocketPassed: virtual machines connect to a socket of the manager's, which stays
// where it is; with --one-off each is the next instance's.
func TestGuestSocketPassed(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	path := filepath.Join(openDir(t), "guest")
	passt := filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
	p := managed(t, lab, 2, "unix "+path, passt, "-f", "--one-off", "-t", "none", "-u", "none")
	for i := range 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("instance %d: %v: %s", i, err, p.Output())
		}
		// A frame that is answered: an ARP request for the gateway.
		if err := askARP(c, netlab.Gateway4); err != nil {
			t.Errorf("instance %d: %v: %s", i, err, p.Output())
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	if st := p.Wait(); st != 0 {
		t.Errorf("status %d: %s", st, p.Output())
	}
}

// TestNotify: a manager that waits is told once, when all works and not before, and neither
// the command nor the process that goes on has anything of the manager's.
func TestNotify(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	passt := filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
	for name, argv := range map[string][]string{
		"command":   {netlab.Pasta(), "--config-net", "-t", "4451:80", "-u", "none", "--", "sh", "-c", `echo "[$NOTIFY_SOCKET]"; exec sleep 60`},
		"machine":   {passt, "-f", "-t", "4452:80"},
		"namespace": {netlab.Pasta(), "-f", "--config-net", "-t", "4453:80", "-u", "none", "-T", "none", "-U", "none", "PID"},
	} {
		for _, asked := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, asked %t", name, asked), func(t *testing.T) {
				lab, dir := lab.For(t), openDir(t)
				at := &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}
				l, err := net.ListenUnixgram("unixgram", at)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				if err := os.Chmod(at.Name, 0o666); err != nil {
					t.Fatal(err)
				}
				argv := append([]string{}, argv...)
				if argv[len(argv)-1] == "PID" {
					argv[len(argv)-1] = fmt.Sprint(holder(t, lab))
				}
				if asked {
					argv = append(argv[:1], append([]string{"--sd-notify"}, argv[1:]...)...)
				}
				if argv[0] == passt {
					argv = append(argv, "-s", filepath.Join(dir, "guest"))
				}
				p := lab.Host.Start(netlab.Spec{Args: argv, Env: []string{"NOTIFY_SOCKET=" + at.Name}, User: netlab.Nobody, Timeout: time.Minute})
				defer p.Kill()
				// As long as it takes; where nobody asked, until it is up.
				port := strings.Split(argv[slices.Index(argv, "-t")+1], ":")[0]
				var b [64]byte
				if asked {
					_ = l.SetReadDeadline(time.Now().Add(20 * time.Second))
					n, err := l.Read(b[:])
					if err != nil || string(b[:n]) != "READY=1" {
						t.Fatalf("told %q, %v: %s", b[:n], err, p.Output())
					}
				}
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					c, err := lab.Host.DialError("tcp", "127.0.0.1:"+port, 5*time.Second)
					if err == nil {
						c.Close()
						break
					}
					if errors.Is(err, unix.ECONNRESET) {
						break // by the guest, where nobody listens
					}
					if asked || p.Exited() || time.Now().After(deadline) {
						t.Fatalf("%v: %s", err, p.Output())
					}
				}
				_ = l.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				if n, err := l.Read(b[:]); err == nil {
					t.Errorf("told %q as well", b[:n])
				}
				if name == "command" {
					want := "[" + at.Name + "]\n"
					if asked {
						want = "[]\n"
					}
					for deadline := time.Now().Add(20 * time.Second); p.Stdout() != want; time.Sleep(5 * time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatalf("the command has %q, want %q", p.Stdout(), want)
						}
					}
				}
			})
		}
	}
}

// askARP has a virtual machine's link ask for the hardware address of an IPv4 address, and
// waits for an answer.
func askARP(c net.Conn, addr string) error {
	mac := []byte{0x52, 0x54, 0, 1, 2, 3}
	f := bytes.Repeat([]byte{0xff}, 6)
	f = append(append(f, mac...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, mac...), net.ParseIP(netlab.Host4).To4()...)
	f = append(append(f, make([]byte, 6)...), net.ParseIP(addr).To4()...)
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return err
		}
		answer := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, answer); err != nil {
			return err
		}
		if len(answer) >= 42 && answer[12] == 8 && answer[13] == 6 && answer[21] == 2 {
			return nil
		}
	}
}
