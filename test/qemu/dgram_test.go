// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// needDgram leaves a test out where QEMU has no -netdev dgram: 7.2 has.
func needDgram(t *testing.T) {
	t.Helper()
	needImage(t)
	if out, _ := exec.Command("qemu-system-x86_64", "-netdev", "help").Output(); !strings.Contains(string(out), "dgram") {
		t.Skip("this QEMU has no -netdev dgram")
	}
}

// startMessages starts passt with a socket of that type, for one machine, in a folder
// where the machine may make one too.
func startMessages(t *testing.T, lab *netlab.Lab, typ string) (p *netlab.Proc, path string) {
	t.Helper()
	dir, err := os.MkdirTemp(netlab.Stage(), typ)
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "passt")
	p = lab.StartPasta(netlab.GuestSpec{Binary: program(t), User: netlab.Nobody, Timeout: 10 * time.Minute},
		"-f", "-s", path, "--socket-type", typ, "--one-off", "-m", "1500")
	for tries := 0; !strings.Contains(p.Output(), "socket bound at"); tries++ {
		if time.Sleep(10 * time.Millisecond); tries > 2000 || p.Exited() {
			t.Fatalf("passt does not come up: %s", p.Output())
		}
	}
	return p, path
}

// TestDgram has QEMU's -netdev dgram on a path of its own and passt on another: QEMU's
// socket is connected to nobody. passt finds out that it has gone.
func TestDgram(t *testing.T) {
	needDgram(t)
	lab := netlab.New(t, netlab.Options{})
	p, ours := startMessages(t, lab, "dgram")
	theirs := filepath.Join(filepath.Dir(ours), "qemu")
	v := boot(t, lab.Host, netdev("dgram,id=n,local.type=unix,local.path="+theirs+",remote.type=unix,remote.path="+ours))
	v.lease(t, true)
	testPing(t, v)
	testTransfer4(t, lab, v, 4<<20)
	v.kill()
	ends(t, p, 30*time.Second)
}

// TestDgramDescriptor gives QEMU and passt the two ends of a pair of datagram sockets.
func TestDgramDescriptor(t *testing.T) {
	needDgram(t)
	lab := netlab.New(t, netlab.Options{})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "passt's"), os.NewFile(uintptr(pair[1]), "QEMU's")
	done := givenPasst(t, lab, ours)
	v := boot(t, lab.Host, netdev("dgram,id=n,local.type=fd,local.str=3"), theirs)
	theirs.Close()
	v.lease(t, false)
	testTransfer4(t, lab, v, 4<<20)
	v.kill()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("passt: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("passt outlives QEMU by half a minute")
	}
}
