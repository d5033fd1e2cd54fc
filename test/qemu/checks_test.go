// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// wants fails the test for every line that is not among those of text.
func wants(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains("\n"+text+"\n", "\n"+l+"\n") {
			t.Errorf("%q is not in\n%s", l, text)
		}
	}
}

func testAdvertisement(t *testing.T, v *vm, mtu int) {
	wants(t, v.must(t, "guest", "advertisement", "eth0"),
		"from fe80::1%eth0", "hops 255", "flags 0x80", "lifetime 65535", "mac 9a:55:9a:55:9a:55",
		"prefix 2001:db8:1::/64 0xc0 4294967295 4294967295", fmt.Sprint("mtu ", mtu),
		"dns 2001:db8::53", "search example.net corp.example.org")
}

// testSLAAC waits for the address and, before the guest has sent anything from
// it or taken another, connects to it.
func testSLAAC(t *testing.T, lab *netlab.Lab, v *vm, mtu int) {
	v.addressed(t, "global", slaac6+"/64")
	if r := v.must(t, "ip", "-6", "route"); !strings.Contains(r, "default via fe80::1 dev eth0") {
		t.Errorf("no default route:\n%s", r)
	}
	if got := v.must(t, "cat", "/proc/sys/net/ipv6/conf/eth0/mtu"); got != "1500" && got != fmt.Sprint(mtu) {
		t.Errorf("IPv6 MTU %s", got)
	}
	if !netlab.Ours() {
		return // the original's inbound connections time out here
	}
	if got, err := netlab.Ask(lab.Remote, "tcp", "["+netlab.Host6+"]:2207", "hello"); err != nil || got != "hello" {
		t.Errorf("inbound to an address that was never heard of: %q, %v", got, err)
	}
}

func testDHCP(t *testing.T, v *vm, mtu int) {
	v.lease(t, false)
	wants(t, v.must(t, "cat", "/tmp/lease.bound"),
		"ip='192.0.2.2'", "mask='24'", "subnet='255.255.255.0'", "router='192.0.2.1'", "dns='192.0.2.53'",
		"search='example.net corp.example.org'", fmt.Sprintf("mtu='%d'", mtu), "hostname='vm'", "serverid='192.0.2.1'", "lease='600'")
	wants(t, v.must(t, "cat", "/etc/resolv.conf"), "search example.net corp.example.org", "nameserver 192.0.2.53")
	wants(t, v.must(t, "hostname"), "vm")
	if out := v.must(t, "ip", "addr", "show", "dev", "eth0"); !strings.Contains(out, fmt.Sprint("mtu ", mtu)) || !strings.Contains(out, "inet 192.0.2.2/24") {
		t.Errorf("interface:\n%s", out)
	}
	if out := v.must(t, "ip", "route"); !strings.Contains(out, "default via 192.0.2.1 dev eth0") {
		t.Errorf("routes:\n%s", out)
	}
}

func testDHCPv6(t *testing.T, v *vm) {
	wants(t, v.must(t, "guest", "dhcpv6", "eth0"), "address "+netlab.Host6, "dns 2001:db8::53", "search example.net corp.example.org", "fqdn vm.example.net")
	v.must(t, "ip", "-6", "addr", "replace", netlab.Host6+"/128", "dev", "eth0")
	v.addressed(t, "global", netlab.Host6+"/128")
}

func testPing(t *testing.T, v *vm) {
	for _, addr := range []string{"192.0.2.9", "2001:db8:1::9", "198.51.100.9", "2001:db8:2::9"} {
		if st, out := v.run("ping", "-c", "2", "-W", "5", "-i", "0.2", addr); st != 0 {
			t.Errorf("%s: %s", addr, out)
		}
	}
}

func testTransfer(t *testing.T, lab *netlab.Lab, v *vm, size int64) {
	testTransfer4(t, lab, v, size)
	transfers(t, lab, v, "[2001:db8:1::9]:5001", size)
}

func testTransfer4(t *testing.T, lab *netlab.Lab, v *vm, size int64) {
	t.Helper()
	transfers(t, lab, v, "192.0.2.9:5001", size)
}

// transfers moves data between guest and remote both ways and compares
// checksums.
func transfers(t *testing.T, lab *netlab.Lab, v *vm, addr string, size int64) {
	t.Helper()
	for _, way := range []string{"up", "down"} {
		l := lab.Remote.Listen("tcp", addr)
		type result struct {
			sum string
			err error
		}
		far := make(chan result, 1)
		go func() {
			sum, err := remoteEnd(l, size, way == "up")
			far <- result{sum, err}
		}()
		since := time.Now()
		st, out := v.run("guest", "transfer", addr, fmt.Sprint(size), way)
		took := time.Since(since)
		l.Close()
		r := <-far
		if st != 0 || r.err != nil || out != r.sum {
			t.Errorf("%s %s: guest %d %q, remote %q, %v", way, addr, st, out, r.sum, r.err)
			continue
		}
		t.Logf("%s %s: %.0f Mbit/s", way, addr, float64(size)*8/1e6/took.Seconds())
	}
}

func remoteEnd(l net.Listener, size int64, receive bool) (string, error) {
	c, err := l.Accept()
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	h := sha256.New()
	if receive {
		n, err := io.Copy(h, c)
		if err != nil || n != size {
			return "", fmt.Errorf("received %d of %d: %w", n, size, err)
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	b := make([]byte, 64<<10)
	for left := size; left > 0; {
		binary.BigEndian.PutUint64(b, uint64(left)*0x9e3779b97f4a7c15)
		n := min(left, int64(len(b)))
		h.Write(b[:n])
		if _, err := c.Write(b[:n]); err != nil {
			return "", err
		}
		left -= n
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, c)
	return hex.EncodeToString(h.Sum(nil)), err
}

func testDatagrams(t *testing.T, lab *netlab.Lab, v *vm) {
	for _, addr := range []string{"192.0.2.9:5002", "[2001:db8:1::9]:5002"} {
		go netlab.EchoUDP(lab.Remote.ListenUDP("udp", addr))
		// Up to what makes a guest fragment, and what the remote fragments.
		if st, out := v.run("guest", "datagrams", addr, "1", "64", "1400", "8000", "8972", "20000", "60000"); st != 0 {
			t.Errorf("%s: %s", addr, out)
		}
	}
}

// testInbound connects to forwarded ports from wherever one can.
func testInbound(t *testing.T, lab *netlab.Lab) {
	for _, tt := range []struct {
		from *netlab.NS
		addr string
		seen string // the client, as the guest sees it
	}{
		{lab.Host, "127.0.0.1", netlab.Gateway4},
		{lab.Host, "[::1]", netlab.Gateway6},
		{lab.Host, netlab.Host4, netlab.Gateway4},
		{lab.Host, "[" + netlab.Host6 + "]", netlab.Gateway6},
		{lab.Remote, netlab.Host4, "192.0.2.9"},
		{lab.Remote, "[" + netlab.Host6 + "]", "2001:db8:1::9"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			if got, err := netlab.Ask(tt.from, network, tt.addr+":2207", "hello"); err != nil || got != "hello" {
				t.Errorf("%s from %s to %s: %q, %v", network, tt.from.Name, tt.addr, got, err)
			}
		}
		got, err := netlab.Ask(tt.from, "tcp", tt.addr+":2209", "")
		if got, _, _ = strings.Cut(got, "%"); err != nil || got != tt.seen {
			t.Errorf("from %s to %s: the guest sees %q, want %s, %v", tt.from.Name, tt.addr, got, tt.seen, err)
		}
	}
}

// testGateway reaches servers on the host's loopback through the gateway.
func testGateway(t *testing.T, lab *netlab.Lab, v *vm) {
	for addr, name := range map[string]string{"127.0.0.1:5003": "192.0.2.1:5003", "[::1]:5003": "[fe80::1%eth0]:5003"} {
		go netlab.Echo(lab.Host.Listen("tcp", addr))
		if got := v.must(t, "guest", "ask", name, "hello host"); got != "hello host" {
			t.Errorf("%s: %q", name, got)
		}
		go netlab.EchoUDP(lab.Host.ListenUDP("udp", addr))
		if st, out := v.run("guest", "datagrams", name, "100"); st != 0 {
			t.Errorf("UDP %s: %s", name, out)
		}
	}
}

// givenPasst starts passt with a connected socket as descriptor 5 and returns
// how it ends.
func givenPasst(t *testing.T, lab *netlab.Lab, socket *os.File) <-chan error {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program(t), "-f", "-q", "--fd", "5")
	cmd.ExtraFiles = []*os.File{null, null, socket}
	var errs strings.Builder
	cmd.Stderr = &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !netlab.Nested() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}
	}
	if err := lab.Host.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	socket.Close()
	done := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = errors.Join(err, errors.New(errs.String()))
		}
		done <- err
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return done
}
