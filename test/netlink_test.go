// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// forger sends forged answers to the netlink sockets of a guest's namespace, as
// its root may, from a socket there.
type forger struct {
	t  *testing.T
	ns *netlab.NS
	fd int

	sent, refused atomic.Int64
}

func newForger(t *testing.T, ns *netlab.NS, protocol int) *forger {
	t.Helper()
	f := &forger{t: t, ns: ns}
	err := ns.Do(func() (err error) {
		f.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(f.fd) })
	return f
}

// targets lists the addresses of netlink sockets of a protocol, but for the
// kernel's, from what ns may read.
func (f *forger) targets(protocol int) (ports []uint32) {
	for line := range strings.Lines(f.ns.Read("/proc/net/netlink")) {
		c := strings.Fields(line)
		if len(c) < 3 || c[1] != strconv.Itoa(protocol) {
			continue
		}
		if n, err := strconv.ParseUint(c[2], 10, 32); err == nil && n != 0 {
			ports = append(ports, uint32(n))
		}
	}
	return ports
}

func (f *forger) send(to uint32, b []byte) {
	err := unix.Sendto(f.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: to})
	switch err {
	case nil:
		f.sent.Add(1)
	case unix.ECONNREFUSED:
		f.refused.Add(1)
	}
}

// boundPort is an answer of sock_diag: a TCP socket listens on port, and a UDP
// socket is bound to it. It is the whole answer to a question with the number.
func boundPort(seq uint32, port uint16) []byte {
	b := make([]byte, 16+72+20)
	binary.NativeEndian.PutUint32(b, 16+72)
	binary.NativeEndian.PutUint16(b[4:], 20) // SOCK_DIAG_BY_FAMILY
	binary.NativeEndian.PutUint32(b[8:], seq)
	binary.BigEndian.PutUint16(b[16+4:], port)
	done := b[16+72:]
	binary.NativeEndian.PutUint32(done, 20)
	binary.NativeEndian.PutUint16(done[4:], unix.NLMSG_DONE)
	binary.NativeEndian.PutUint32(done[8:], seq)
	return b
}

// TestForgedAnswers has root of the guest answer in the kernel's place, and flood,
// whoever lists the ports that are bound in its namespace: nothing is opened
// that is not bound, what is bound still is, and other traffic goes on.
func TestForgedAnswers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "auto", "-u", "auto")
	tellOnce(lab.Remote, "tcp", ":7")
	f := newForger(t, g.NS, unix.NETLINK_SOCK_DIAG)
	sockets := f.targets(unix.NETLINK_SOCK_DIAG)
	if len(sockets) == 0 {
		t.Fatal("nobody lists the ports that are bound")
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for seq := uint32(1); ; seq++ {
			select {
			case <-stop:
				return
			default:
			}
			for _, to := range sockets {
				f.send(to, boundPort(seq%64, 22222))
			}
			if seq%256 == 0 {
				time.Sleep(time.Millisecond) // a loaded machine has more to do
			}
		}
	}()
	end := time.Now().Add(3 * time.Second)
	for time.Now().Before(end) {
		for _, port := range []string{"22222"} {
			if c, err := lab.Remote.DialError("tcp", netlab.Host4+":"+port, time.Second); err == nil {
				c.Close()
				t.Fatalf("port %s of the host is open, of the guest it is not", port)
			}
		}
		if got, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "?"); got != "?" {
			t.Fatalf("other traffic: %q, %v", got, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	closeIt := tellOnce(g.NS, "tcp", ":8080") // while the flood goes on
	becomes(t, lab.Remote, "tcp", netlab.Host4+":8080", "?")
	close(stop)
	<-done
	if f.sent.Load() > 0 {
		t.Errorf("%d forged answers were taken, %d refused", f.sent.Load(), f.refused.Load())
	}
	closeIt()
	becomes(t, lab.Remote, "tcp", netlab.Host4+":8080", "")
}
