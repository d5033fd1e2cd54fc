// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"aldente/test/netlab"
)

// frontEnd is DPDK's testpmd with the front-end for rings of its own,
// virtio-user. It passes frames on between that and a tap, behind which there
// is a whole kernel.
type frontEnd struct {
	*netlab.NS
	proc *netlab.Proc
}

// startFrontEnd starts testpmd and gives its kernel the host's addresses.
func startFrontEnd(t *testing.T, p *passt, queues, ring int) frontEnd {
	t.Helper()
	n := netlab.NewNS(t, "front-end")
	hold, w, err := os.Pipe() // testpmd ends when its input does
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	t.Cleanup(func() { w.Close() })
	f := frontEnd{NS: n}
	// Memory that is no huge page is a memfd, which can be shared.
	f.proc = n.Start(netlab.Spec{Stdin: hold, Timeout: 10 * time.Minute, Env: []string{"XDG_RUNTIME_DIR=" + t.TempDir()},
		Args: []string{"dpdk-testpmd", "-l", "0,1", "--no-huge", "--in-memory", "-m", "128", "--no-pci", "--no-telemetry",
			"--vdev", fmt.Sprintf("net_virtio_user0,path=%s,queues=%d,queue_size=%d", p.path, queues, ring),
			"--vdev", "net_tap0,iface=dt0",
			"--", "-i", "--auto-start", "--total-num-mbufs=8192", fmt.Sprintf("--rxq=%d", queues), fmt.Sprintf("--txq=%d", queues)}})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(f.proc.Output())
		}
	})
	for since := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if st, _ := n.Run("sh", "-c", configureTap); st == 0 {
			return f
		}
		if f.proc.Exited() || time.Since(since) > time.Minute {
			t.Fatalf("testpmd forwards nothing (%s)", f.proc.State())
		}
	}
}

// configureTap fails for as long as testpmd is not up.
const configureTap = `ip link set dt0 up && ip addr replace 192.0.2.2/24 dev dt0 && ip route replace default via 192.0.2.1 dev dt0 &&
	ip -6 addr replace 2001:db8:1::2/64 dev dt0 nodad && ip -6 route replace default via fe80::1 dev dt0 &&
	ping -c 1 -W 1 192.0.2.1`

// TestTestpmd has another front-end than QEMU's: DPDK's, which polls, has no
// offloads, and uses descriptors in order.
func TestTestpmd(t *testing.T) {
	needEvery(t)
	if _, err := exec.LookPath("dpdk-testpmd"); err != nil {
		t.Skip("DPDK's testpmd is not installed: package dpdk-dev")
	}
	for _, tt := range []struct{ queues, ring int }{{1, 256}, {4, 1024}} {
		t.Run(fmt.Sprintf("%d pairs", tt.queues), func(t *testing.T) {
			if tt.queues > 1 && !netlab.Ours() {
				t.Skip("the original has one pair")
			}
			lab := netlab.New(t, netlab.Options{})
			p := startPasst(t, lab, "--vhost-user", "-m", "1500", "-t", "2207:7", "-u", "2207:7")
			for range 2 { // the second after the end of the first
				t.Run("network", func(t *testing.T) {
					testFrontEnd(t, lab.For(t), startFrontEnd(t, p, tt.queues, tt.ring))
				})
			}
		})
	}
}

func testFrontEnd(t *testing.T, lab *netlab.Lab, f frontEnd) {
	for _, addr := range []string{"192.0.2.9:5001", "[2001:db8:1::9]:5001"} {
		for _, down := range []bool{false, true} {
			if err := netlab.Transfer(f.NS, lab.Remote, addr, addr, 32<<20, down, time.Minute); err != nil {
				t.Errorf("%s, down %v: %v", addr, down, err)
			}
		}
		go netlab.EchoUDP(lab.Remote.ListenUDP("udp", addr))
		if got, err := netlab.Ask(f.NS, "udp", addr, "hello"); err != nil || got != "hello" {
			t.Errorf("UDP %s: %q, %v", addr, got, err)
		}
	}
	go netlab.Echo(f.Listen("tcp", ":7"))
	go netlab.EchoUDP(f.ListenUDP("udp4", "192.0.2.2:7"))
	for _, network := range []string{"tcp", "udp"} {
		if got, err := netlab.Ask(lab.Remote, network, netlab.Host4+":2207", "hello"); err != nil || got != "hello" {
			t.Errorf("%s inbound: %q, %v", network, got, err)
		}
	}
	if got, err := netlab.Ask(lab.Remote, "tcp", "["+netlab.Host6+"]:2207", "hello"); err != nil || got != "hello" {
		t.Errorf("inbound by IPv6: %q, %v", got, err)
	}
}
