// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// everyEnv asks for the machines that are too many for every run.
const everyEnv = "ALDENTE_VM"

// needEvery leaves a test out unless all are asked for.
func needEvery(t *testing.T) {
	t.Helper()
	if os.Getenv(everyEnv) != "every" {
		t.Skip("heavy: make test-libvirt boots these machines")
	}
}

// shape is a card behind vhost-user.
type shape struct {
	name   string
	queues int // pairs
	ring   int // entries of each ring
	mtu    int
}

// vhost is QEMU's side of the socket: a machine with memory that can be shared
// and a processor for each pair of queues.
func (p *passt) vhost(t *testing.T, s shape) link {
	return link{
		args: append(sharedMemory(s.queues), "-chardev", "socket,id=v,path="+p.path+reconnect(t),
			"-netdev", fmt.Sprintf("vhost-user,id=n,chardev=v,queues=%d", s.queues)),
		card: s.card(t),
	}
}

func sharedMemory(processors int) []string {
	return []string{"-object", "memory-backend-memfd,id=m,size=256M,share=on", "-machine", "memory-backend=m",
		"-smp", fmt.Sprint(processors), "-action", "reboot=reset"}
}

func (s shape) card(t *testing.T) string {
	card := fmt.Sprintf(",rx_queue_size=%d,tx_queue_size=%[1]d", s.ring)
	if s.queues > 1 {
		// A vector for each ring, one for the control queue, one for changes.
		card += fmt.Sprintf(",mq=on,vectors=%d", 2*s.queues+2)
	}
	if version(t) < 800 {
		card += ",vectors=0" // with MSI-X and without KVM, QEMU 7.2 takes KVM's way and dies by SIGSEGV
	}
	return card
}

// TestVhostUser is all that machines show behind vhost-user, and what else
// becomes of their rings.
func TestVhostUser(t *testing.T) {
	needImage(t)
	for _, s := range []shape{
		{"one pair", 1, 256, 9000},
		{"one pair, rings of 1024", 1, 1024, 65520},
		{"four pairs", 4, 256, 1500},
		{"four pairs, rings of 1024", 4, 1024, 65520},
	} {
		t.Run(s.name, func(t *testing.T) {
			if s.queues > 1 || s.ring > 256 {
				needEvery(t)
			}
			if s.queues > 1 && !netlab.Ours() {
				t.Skip("the original has one pair")
			}
			lab := netlab.New(t, netlab.Options{})
			p := startPasst(t, lab, append(machineArgs(s.mtu), "--vhost-user")...)
			v := boot(t, lab.Host, p.vhost(t, s))
			v.agreed(t, s)
			testMachine(t, lab, v, s.mtu)
			t.Run("without offloads", func(t *testing.T) { testNoOffloads(t, lab.For(t), v) })
			t.Run("rings resized", func(t *testing.T) { testRings(t, lab.For(t), v, s) })
			t.Run("fewer queues", func(t *testing.T) { testChannels(t, lab.For(t), v, s) })
			t.Run("driver reloaded", func(t *testing.T) { testReload(t, lab.For(t), v) })
			t.Run("driver bound again", func(t *testing.T) { testRebind(t, lab.For(t), v) })
			t.Run("rebooted", func(t *testing.T) { testReboot(t, lab.For(t), v) })
			testSuccession(t, lab, p, v, func() *vm { return boot(t, lab.Host, p.vhost(t, s)) })
		})
	}
}

// agreed looks whether card and driver have agreed on what makes it fast, and uses it.
func (v *vm) agreed(t *testing.T, s shape) {
	t.Helper()
	if !netlab.Ours() {
		return
	}
	// Sums and segments both ways, buffers that are merged, several queues, indirect
	// descriptors, an event index: virtio 1.3 sections 5.1.3 and 6.
	want := []string{"0", "1", "7", "8", "11", "12", "15", "28", "29", "32"}
	if s.queues > 1 {
		want = append(want, "22")
	}
	got := strings.Fields(v.must(t, "guest", "features", "eth0"))
	for _, f := range want {
		if !slices.Contains(got, f) {
			t.Errorf("feature %s is not among %v", f, got)
		}
	}
	if n := v.must(t, "guest", "queues", "eth0"); n != fmt.Sprint(s.queues) {
		t.Errorf("%s queues, want %d", n, s.queues)
	}
}

// works is what a machine does when its network has started anew.
func (v *vm) works(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	v.lease(t, true)
	testTransfer(t, lab, v, 4<<20)
	testInbound(t, lab)
}

// testNoOffloads turns off what the card would do for the guest, and on again.
func testNoOffloads(t *testing.T, lab *netlab.Lab, v *vm) {
	for _, left := range strings.Fields(v.must(t, "guest", "offloads", "eth0", "off")) {
		if left != "rx" { // what comes in may always be without a sum
			t.Errorf("%s cannot be turned off", left)
		}
	}
	testTransfer(t, lab, v, 4<<20)
	testDatagrams(t, lab, v)
	testInbound(t, lab)
	v.must(t, "guest", "offloads", "eth0", "on")
	testTransfer(t, lab, v, 4<<20)
}

// testRings asks for rings of other sizes, which single rings have to be reset for. That may be
// refused; what is there then goes on.
func testRings(t *testing.T, lab *netlab.Lab, v *vm, s shape) {
	for _, n := range []int{64, s.ring / 2, s.ring} {
		status, out := v.run("guest", "rings", "eth0", fmt.Sprint(n))
		if out = strings.TrimSpace(out); status == 0 && out != fmt.Sprint(n) {
			t.Fatalf("rings of %s, want %d", out, n)
		}
		t.Logf("rings of %d: status %d, %s", n, status, out)
		testTransfer(t, lab, v, 4<<20)
		testInbound(t, lab)
	}
}

// testChannels has the guest use fewer pairs of queues, and all again.
func testChannels(t *testing.T, lab *netlab.Lab, v *vm, s shape) {
	if s.queues == 1 {
		t.Skip("there is one")
	}
	for _, n := range []int{1, 3, s.queues} {
		if out := v.must(t, "guest", "channels", "eth0", fmt.Sprint(n)); out != fmt.Sprint(n) {
			t.Fatalf("%s pairs, want %d", out, n)
		}
		testTransfer(t, lab, v, 4<<20)
		testInbound(t, lab)
	}
}

// testReload takes the driver out of the kernel and puts it back, which resets
// the card.
func testReload(t *testing.T, lab *netlab.Lab, v *vm) {
	for range 3 {
		v.must(t, "rmmod", "virtio_net")
		v.must(t, "insmod", "/modules/virtio_net.ko")
		v.must(t, "ip", "link", "set", "eth0", "up")
	}
	v.works(t, lab)
}

// testRebind takes the card from its driver while packets are in flight.
func testRebind(t *testing.T, lab *netlab.Lab, v *vm) {
	go v.run("guest", "transfer", "192.0.2.9:9", "67108864", "up")
	name := v.must(t, "sh", "-c", "basename $(readlink /sys/class/net/eth0/device)")
	const driver = "/sys/bus/virtio/drivers/virtio_net/"
	v.must(t, "sh", "-c", "echo "+name+" > "+driver+"unbind")
	v.must(t, "sh", "-c", "echo "+name+" > "+driver+"bind")
	v.works(t, lab)
}

// testReboot has the guest start again in the same machine.
func testReboot(t *testing.T, lab *netlab.Lab, v *vm) {
	go v.run("reboot", "-f")
	v.up(t)
	v.works(t, lab)
}

// TestVhostUserReconnect kills what is behind the socket: passt, for another
// to be started, and, where it has one, its worker alone.
func TestVhostUserReconnect(t *testing.T) {
	needEvery(t)
	needImage(t)
	for _, queues := range []int{1, 4} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			args := append(machineArgs(65520), "--vhost-user")
			p := startPasst(t, lab, args...)
			v := boot(t, lab.Host, p.vhost(t, shape{queues: queues, ring: 256}))
			v.lease(t, true)
			testTransfer4(t, lab, v, 1<<20)
			p.Kill()
			p.Wait()
			p = startPasstAt(t, lab, p.path, args...)
			v.back(t, lab)
			if worker := p.worker(); worker > 0 {
				if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				v.back(t, lab)
			}
		})
	}
}

// back waits until a machine reaches the network again.
func (v *vm) back(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	since := time.Now()
	for v.reaches("192.0.2.9") != nil {
		if time.Since(since) > 30*time.Second {
			_, state := v.run("sh", "-c", "ifconfig eth0; cat /proc/interrupts")
			t.Fatalf("no connection again\n%s", state)
		}
	}
	t.Logf("works again after %v", time.Since(since).Round(100*time.Millisecond))
	testTransfer(t, lab, v, 1<<20)
	testInbound(t, lab)
}

// worker returns the process id of passt's worker, or 0.
func (p *passt) worker() int {
	for _, pid := range netlab.Children(p.PID) {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.HasPrefix(string(comm), "aldente-worker") {
			return pid
		}
	}
	return 0
}
