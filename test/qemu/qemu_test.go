// SPDX-License-Identifier: Apache-2.0

// Package qemu boots a Debian kernel under QEMU, emulated and unprivileged,
// behind passt's stream socket, and looks at the network from inside.
package qemu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m.Run)) }

// TestVM is all that one machine shows behind the stream socket.
func TestVM(t *testing.T) {
	needImage(t)
	lab := netlab.New(t, netlab.Options{})
	p := startPasst(t, lab, machineArgs(9000)...)
	v := testMachine(t, lab, boot(t, lab.Host, p.stream(t)), 9000)
	testSuccession(t, lab, p, v, func() *vm { return boot(t, lab.Host, p.stream(t)) })
}

// machineArgs are passt's options for testMachine.
func machineArgs(mtu int) []string {
	return []string{"-t", "2207:7,2209:9", "-u", "2207:7", "-m", fmt.Sprint(mtu),
		"--hostname", "vm", "--fqdn", "vm.example.net", "-D", "192.0.2.53", "-D", "2001:db8::53",
		"-S", "example.net", "-S", "corp.example.org"}
}

// testMachine is all that a machine sees whose passt has machineArgs. Subtests
// build on one another.
func testMachine(t *testing.T, lab *netlab.Lab, v *vm, mtu int) *vm {
	v.must(t, "ip", "link", "set", "eth0", "up")
	t.Run("SLAAC", func(t *testing.T) { testSLAAC(t, lab.For(t), v, mtu) })
	t.Run("advertisement", func(t *testing.T) { testAdvertisement(t, v, mtu) })
	t.Run("DHCP", func(t *testing.T) { testDHCP(t, v, mtu) })
	t.Run("DHCPv6", func(t *testing.T) { testDHCPv6(t, v) })
	t.Run("ping", func(t *testing.T) { testPing(t, v) })
	t.Run("transfer", func(t *testing.T) { testTransfer(t, lab.For(t), v, 16<<20) })
	t.Run("datagrams", func(t *testing.T) { testDatagrams(t, lab.For(t), v) })
	t.Run("inbound", func(t *testing.T) { testInbound(t, lab.For(t)) })
	t.Run("gateway", func(t *testing.T) { testGateway(t, lab.For(t), v) })
	return v
}

// testSuccession has a second client come while the machine is there, another
// machine after it, and ends passt.
func testSuccession(t *testing.T, lab *netlab.Lab, p *passt, v *vm, again func() *vm) {
	t.Run("second client", func(t *testing.T) {
		c, err := net.Dial("unix", p.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			t.Errorf("not turned away: %d bytes, %v", n, err)
		}
		testPing(t, v)
	})
	t.Run("restart", func(t *testing.T) {
		v.kill()
		v := again()
		v.lease(t, true)
		testPing(t, v)
		testTransfer(t, lab.For(t), v, 1<<20)
		testInbound(t, lab.For(t))
	})
	t.Run("terminated", func(t *testing.T) {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		ends(t, p.Proc, 10*time.Second)
	})
}

// ends waits for the program's end and checks its status.
func ends(t *testing.T, p *netlab.Proc, within time.Duration) {
	t.Helper()
	since := time.Now()
	st, ok := p.WaitFor(within)
	if !ok || st != 0 {
		t.Fatalf("ended %v with status %d", ok, st)
	}
	t.Logf("ended after %v", time.Since(since).Round(time.Millisecond))
}

// TestOneOff needs no guest that runs: QEMU connects before its processor
// starts.
func TestOneOff(t *testing.T) {
	netlab.Have(t, "qemu-system-x86_64")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{NoRemote: true})
			p := startPasst(t, lab, "--one-off")
			v := launch(t, lab.Host, nil, append(p.stream(t).args, "-S", "-device", "virtio-net-pci,netdev=n,romfile=")...)
			time.Sleep(300 * time.Millisecond)
			if p.Exited() {
				t.Fatalf("passt ended with status %d while QEMU was there", p.Wait())
			}
			_ = v.proc.Process.Signal(sig)
			<-v.done
			ends(t, p.Proc, 10*time.Second)
		})
	}
}

// TestReconnect kills passt and starts another, as libvirt does, to which QEMU
// connects by itself.
func TestReconnect(t *testing.T) {
	needImage(t)
	if reconnect(t) == "" {
		t.Skip("this QEMU's -netdev stream cannot reconnect: 8.0 can")
	}
	lab := netlab.New(t, netlab.Options{})
	p := startPasst(t, lab)
	v := boot(t, lab.Host, p.stream(t))
	v.lease(t, false)
	testTransfer4(t, lab, v, 1<<20)
	p.Kill()
	p.Wait()
	startPasstAt(t, lab, p.path)
	for since := time.Now(); v.reaches("192.0.2.9") != nil; {
		if time.Since(since) > 20*time.Second {
			t.Fatal("no connection again")
		}
	}
	testTransfer4(t, lab, v, 1<<20)
}

// TestNetdevPasst has QEMU start passt.
func TestNetdevPasst(t *testing.T) {
	needImage(t)
	if out, _ := exec.Command("qemu-system-x86_64", "-netdev", "help").Output(); !strings.Contains(string(out), "passt") {
		t.Skip("this QEMU has no -netdev passt: 10.1 has")
	}
	for _, vhost := range []bool{false, true} {
		t.Run(fmt.Sprintf("vhost-user %v", vhost), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			l := netdev(fmt.Sprintf(`{"type": "passt", "id": "n", "path": %q, "mtu": 1500, "vhost-user": %v,
				"tcp-ports": [{"str": "2207:7"}, {"str": "2209:9"}], "udp-ports": [{"str": "2207:7"}]}`, program(t), vhost))
			if vhost {
				needEvery(t)
				l.args = append(l.args, sharedMemory(1)...)
			}
			v := boot(t, lab.Host, l)
			var passt []int
			for _, p := range hostProcesses(t, lab.Host) {
				if c, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p)); strings.Contains(string(c), "passt") && p != v.proc.Process.Pid {
					t.Log(strings.ReplaceAll(string(c), "\x00", " "))
					passt = append(passt, netlab.Children(p)...)
				}
			}
			v.lease(t, true)
			testTransfer(t, lab, v, 1<<20)
			testInbound(t, lab)
			v.kill()
			gone(t, passt, 10*time.Second)
		})
	}
}

// hostProcesses returns the processes in a network namespace.
func hostProcesses(t *testing.T, n *netlab.NS) (pids []int) {
	t.Helper()
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, l := range links {
		if name, err := os.Readlink(l); err == nil && name == fmt.Sprintf("net:[%d]", n.Inode()) {
			pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// gone waits for the end of processes.
func gone(t *testing.T, pids []int, within time.Duration) {
	t.Helper()
	if len(pids) == 0 {
		t.Error("there were no processes")
	}
	deadline := time.Now().Add(within)
	for _, p := range pids {
		for f := netlab.Stat(p); f != nil && f[0] != "Z"; f = netlab.Stat(p) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d is still there after %v", p, within)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// TestDescriptor gives QEMU and passt the two ends of a pair of sockets, as
// -netdev passt does.
func TestDescriptor(t *testing.T) {
	needImage(t)
	lab := netlab.New(t, netlab.Options{})
	for _, kind := range []string{"socket", "stream"} {
		t.Run(kind, func(t *testing.T) {
			lab := lab.For(t)
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := os.NewFile(uintptr(pair[0]), "passt's"), os.NewFile(uintptr(pair[1]), "QEMU's")
			done := givenPasst(t, lab, ours)
			text := "socket,id=n,fd=3"
			if kind == "stream" {
				text = "stream,id=n,server=off,addr.type=fd,addr.str=3"
			}
			v := boot(t, lab.Host, netdev(text), theirs)
			theirs.Close()
			v.lease(t, false)
			testTransfer4(t, lab, v, 1<<20)
			v.kill()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("passt: %v", err)
				}
			case <-time.After(time.Second):
				t.Error("passt outlives QEMU")
			}
		})
	}
}
