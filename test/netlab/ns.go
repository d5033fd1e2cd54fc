// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct {
	Name string // for messages only
	fd   int
	tb   TB
}

// NewNS makes an empty network namespace with loopback up and duplicate
// address detection off.
func NewNS(tb TB, name string) *NS {
	tb.Helper()
	n := &NS{Name: name, fd: -1, tb: tb}
	err := locked(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		tb.Fatalf("network namespace %s: %v", name, err)
	}
	tb.Cleanup(func() { unix.Close(n.fd) })
	n.Sysctl("net/ipv4/ping_group_range", "0 2147483647", "0 0")
	n.SetCongestionControl()
	for _, c := range []string{"all", "default"} {
		n.trySysctl("net/ipv6/conf/"+c+"/accept_dad", "0")
	}
	n.IP("link set lo up")
	return n
}

// OpenNS returns the namespace at path, as /proc/PID/ns/net.
func OpenNS(tb TB, name, path string) *NS {
	tb.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatalf("network namespace %s: %v", name, err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	return &NS{Name: name, fd: fd, tb: tb}
}

// For returns the namespace as a subtest uses it: what the subtest starts or
// opens ends with it.
func (n *NS) For(tb TB) *NS {
	c := *n
	c.tb = tb
	return &c
}

// Path names the namespace for other programs for as long as this one lives.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

// locked runs f on a thread of its own and puts the thread back into the
// namespace that it came from.
func locked(f func() error) (err error) {
	runtime.LockOSThread()
	old, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	// Also where f ends its test's goroutine.
	defer func() {
		defer unix.Close(old)
		if e := unix.Setns(old, unix.CLONE_NEWNET); e != nil {
			// The thread is lost to its namespace. It stays locked and ends with
			// its goroutine, and with it the processes that it started.
			err = fmt.Errorf("leaving a namespace: %w", e)
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// Do runs f with the calling thread inside the namespace. Sockets and
// processes that f makes stay there.
func (n *NS) Do(f func() error) error {
	return locked(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering %s: %w", n.Name, err)
		}
		return f()
	})
}

// Sysctl sets a sysctl of the namespace to the first of values that it takes.
func (n *NS) Sysctl(key string, values ...string) {
	n.tb.Helper()
	var err error
	for _, v := range values {
		if err = n.trySysctl(key, v); err == nil {
			return
		}
	}
	n.tb.Fatalf("%s: sysctl %s: %v", n.Name, key, err)
}

// SetCongestionControl sets cubic, whatever the host's default is. Where the
// host does not allow it to other namespaces (net.ipv4.tcp_allowed_congestion_control),
// it sets reno, which no host can forbid; see WithCubic.
func (n *NS) SetCongestionControl() {
	n.tb.Helper()
	n.Sysctl("net/ipv4/tcp_congestion_control", "cubic", "reno")
}

func (n *NS) trySysctl(key, value string) error {
	return n.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
}

// Read returns a file as a process of the namespace sees it; "/proc/net" is
// the namespace's own.
func (n *NS) Read(path string) string {
	n.tb.Helper()
	path = strings.Replace(path, "/proc/net/", "/proc/thread-self/net/", 1)
	var b []byte
	err := n.Do(func() (err error) { b, err = os.ReadFile(path); return })
	if err != nil {
		n.tb.Fatalf("%s: %v", n.Name, err)
	}
	return strings.TrimSpace(string(b))
}

// IP runs ip(8) on the commands in batches; those that begin with "-6" run
// after the others.
func (n *NS) IP(commands ...string) {
	n.tb.Helper()
	var plain, six []string
	for _, c := range commands {
		if c6, ok := strings.CutPrefix(c, "-6 "); ok {
			six = append(six, c6)
		} else {
			plain = append(plain, c)
		}
	}
	n.ipBatch(plain)
	n.ipBatch(six, "-6")
}

func (n *NS) ipBatch(commands []string, flags ...string) {
	n.tb.Helper()
	if len(commands) == 0 {
		return
	}
	text := strings.Join(commands, "\n") + "\n"
	p := n.Start(Spec{Args: slices.Concat([]string{"ip"}, flags, []string{"-batch", "-"}), Stdin: strings.NewReader(text)})
	if st := p.Wait(); st != 0 {
		n.tb.Fatalf("%s: ip: status %d\n%s%s", n.Name, st, text, p.Output())
	}
}

// Start starts a process in the namespace; it is killed when the test ends.
func (n *NS) Start(s Spec) *Proc {
	n.tb.Helper()
	var p *Proc
	err := n.Do(func() (err error) { p, err = start(s); return })
	if err != nil {
		n.tb.Fatalf("%s: %v", n.Name, err)
	}
	n.tb.Cleanup(func() {
		p.Kill()
		<-p.done
	})
	return p
}

// Run runs a command to its end and returns its status and all its output.
func (n *NS) Run(args ...string) (int, string) {
	n.tb.Helper()
	p := n.Start(Spec{Args: args})
	st := p.Wait()
	return st, p.Output()
}

// Must runs a command that has to succeed and returns its standard output.
func (n *NS) Must(args ...string) string {
	n.tb.Helper()
	p := n.Start(Spec{Args: args})
	if st := p.Wait(); st != 0 {
		n.tb.Fatalf("%s: %s: status %d\n%s", n.Name, strings.Join(args, " "), st, p.Output())
	}
	return p.Stdout()
}

// Listen opens a stream listener in the namespace.
func (n *NS) Listen(network, addr string) net.Listener {
	n.tb.Helper()
	var l net.Listener
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	err := n.Do(func() (err error) { l, err = lc.Listen(context.Background(), network, addr); return })
	if err != nil {
		n.tb.Fatalf("%s: %v", n.Name, err)
	}
	n.tb.Cleanup(func() { l.Close() })
	return l
}

// ListenUDP opens a datagram socket in the namespace.
func (n *NS) ListenUDP(network, addr string) *net.UDPConn {
	n.tb.Helper()
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(context.Background(), network, addr)
		return
	})
	if err != nil {
		n.tb.Fatalf("%s: %v", n.Name, err)
	}
	n.tb.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// DialError connects from the namespace to a literal address.
func (n *NS) DialError(network, addr string, timeout time.Duration) (net.Conn, error) {
	var c net.Conn
	d := net.Dialer{Timeout: timeout, KeepAlive: -1}
	d.SetMultipathTCP(false)
	err := n.Do(func() (err error) { c, err = d.Dial(network, addr); return })
	return c, err
}

// Dial is DialError for connections that have to succeed within ten seconds.
func (n *NS) Dial(network, addr string) net.Conn {
	n.tb.Helper()
	c, err := n.DialError(network, addr, 10*time.Second)
	if err != nil {
		n.tb.Fatalf("%s: %v", n.Name, err)
	}
	n.tb.Cleanup(func() { c.Close() })
	return c
}

// Inode identifies the namespace as the links in /proc/PID/ns do.
func (n *NS) Inode() uint64 {
	var st syscall.Stat_t
	if err := syscall.Fstat(n.fd, &st); err != nil {
		return 0
	}
	return st.Ino
}
