// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// TestGuestDataNotLogged has the guest say something by every protocol, with all
// that the log can tell switched on: it is not in there.
func TestGuestDataNotLogged(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	serve(lab.Remote, "192.0.2.9", 53)
	g := lab.Guest("--trace", "-t", "10500", "-u", "10500", "--deny", "198.51.100.0/24")
	go netlab.Echo(g.Listen("tcp", ":10500"))
	const secret = "xyzzy-hunter2"
	for _, to := range []struct {
		from          *netlab.NS
		network, addr string
	}{
		{g.NS, "tcp", "192.0.2.9:7"}, {g.NS, "udp", "192.0.2.9:53"}, {g.NS, "udp", "192.0.2.9:9"}, {g.NS, "udp", "192.0.2.1:67"},
		{g.NS, "tcp", "198.51.100.9:7"}, {lab.Remote, "tcp", "192.0.2.2:10500"}, {lab.Remote, "udp", "192.0.2.2:10500"},
	} {
		c, err := to.from.DialError(to.network, to.addr, time.Second)
		if err != nil {
			continue
		}
		fmt.Fprint(c, secret)
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = c.Read(make([]byte, 100))
		c.Close()
	}
	g.Run("ping", "-c", "1", "-W", "1", "-p", fmt.Sprintf("%x", secret), "192.0.2.9")
	_ = syscall.Kill(mustWorker(t, g), syscall.SIGABRT) // what the runtime says when it dies
	if cause := ended(t, g); !strings.Contains(cause, "SIGABRT") {
		t.Errorf("cause %q", cause)
	}
	out := g.Proc.Output()
	if !strings.Contains(out, "in force") || !strings.Contains(out, "refused by the egress rules") {
		t.Errorf("the log says too little for this test:\n%s", out)
	}
	for _, form := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("% x", secret), fmt.Sprint([]byte(secret))} {
		if strings.Contains(out, form) {
			t.Errorf("the log has %q:\n%s", form, out)
		}
	}
}

// TestSequenceNumbers: what one connection's initial sequence number is says
// nothing of another's, nor of the same one's with a later worker, RFC 6528.
func TestSequenceNumbers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	g := lab.Guest()
	const tuples = 12
	round := func() (numbers [tuples]uint32) {
		heard := hearSYNs(t, g)
		for i := range numbers {
			err := g.Do(func() error {
				d := net.Dialer{LocalAddr: &net.TCPAddr{Port: 41000 + i}, Timeout: 5 * time.Second}
				c, err := d.Dial("tcp4", "192.0.2.9:7")
				if err == nil {
					_ = c.(*net.TCPConn).SetLinger(0) // the same again
					c.Close()
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for i := range numbers {
			n, ok := heard()[uint16(41000+i)]
			if !ok {
				t.Fatalf("no SYN-ACK for connection %d", i)
			}
			numbers[i] = n
		}
		return numbers
	}
	// The clock in them ticks every 4 µs: within the test it gets nowhere.
	near := func(a, b uint32) bool { return int32(a-b) < 1<<24 && int32(b-a) < 1<<24 }
	first := round()
	n := 0
	for i := 1; i < tuples; i++ {
		if near(first[i], first[i-1]) {
			n++
		}
	}
	old := mustWorker(t, g)
	_ = syscall.Kill(old, syscall.SIGKILL)
	if !eventually(5*time.Second, func() bool { w := g.Worker(); return w != 0 && w != old }) {
		t.Fatal("not replaced")
	}
	again := 0
	for i, s := range round() {
		if near(s, first[i]) {
			again++
		}
	}
	// One pair in 128 is near by chance.
	if n > 3 || again > 3 {
		t.Errorf("%d of %d follow the one before, %d are near those of the worker before", n, tuples, again)
	}
}

// hearSYNs listens on the guest's interface and returns who tells the sequence
// numbers of the SYN-ACKs so far, by the guest's port.
func hearSYNs(t *testing.T, g *netlab.Guest) func() map[uint16]uint32 {
	t.Helper()
	var fd int
	if err := g.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_IP)))
		return err
	}); err != nil {
		t.Skipf("needs a packet socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	heard := map[uint16]uint32{}
	return func() map[uint16]uint32 {
		b := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return heard
			}
			if n >= 40 && b[9] == unix.IPPROTO_TCP && b[33] == 0x12 { // no options in the IPv4 header; SYN and ACK
				heard[binary.BigEndian.Uint16(b[22:])] = binary.BigEndian.Uint32(b[24:])
			}
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
