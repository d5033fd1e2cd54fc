// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// libvirtUser is who libvirt's session daemon runs as: it wants an entry in
// passwd(5).
var libvirtUser = &netlab.User{UID: 65534, GID: 65534}

// session is libvirt for one user.
type session struct {
	t   *testing.T
	lab *netlab.Lab
	dir string
	env []string
}

// startLibvirt starts the session daemon on the lab's host, with our passt
// first in its path.
func startLibvirt(t *testing.T, lab *netlab.Lab) *session {
	t.Helper()
	daemon := ""
	for _, d := range []string{"virtqemud", "libvirtd"} {
		for _, dir := range []string{"/usr/sbin", "/usr/bin"} {
			if _, err := os.Stat(filepath.Join(dir, d)); err == nil && daemon == "" {
				daemon = filepath.Join(dir, d)
			}
		}
	}
	if _, err := exec.LookPath("virsh"); err != nil || daemon == "" {
		t.Skip("libvirt is not installed: packages libvirt-daemon, libvirt-daemon-driver-qemu and libvirt-clients")
	}
	if netlab.Nested() {
		t.Skip("needs root, to become another user than root")
	}
	s := &session{t: t, lab: lab, dir: filepath.Join(netlab.Stage(), "lv")}
	for _, d := range []string{"", "run", "config/libvirt", "cache", "bin"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	// Without virtlogd.
	conf := filepath.Join(s.dir, "config/libvirt/qemu.conf")
	if err := os.WriteFile(conf, []byte("stdio_handler = \"file\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ours := filepath.Dir(netlab.Pasta())
	s.env = []string{"env", "HOME=" + s.dir, "XDG_RUNTIME_DIR=" + s.dir + "/run", "XDG_CONFIG_HOME=" + s.dir + "/config",
		"XDG_CACHE_HOME=" + s.dir + "/cache", "PATH=" + ours + ":/usr/bin:/usr/sbin:/bin:/sbin"}
	if out, err := exec.Command("chown", "-R", fmt.Sprintf("%d:%d", libvirtUser.UID, libvirtUser.GID), s.dir).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v %s", err, out)
	}
	p := lab.Host.Start(netlab.Spec{Args: append(s.env, daemon, "--timeout", "300"), User: libvirtUser, Timeout: 10 * time.Minute})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s: %s", daemon, p.Output())
		}
	})
	for range 100 {
		if st, _ := s.virsh("version"); st == 0 {
			return s
		}
		time.Sleep(100 * time.Millisecond)
	}
	_, out := s.virsh("version")
	t.Fatalf("libvirt is not up: %s", out)
	return nil
}

func (s *session) virsh(args ...string) (int, string) {
	p := s.lab.Host.Start(netlab.Spec{User: libvirtUser, Dir: "/", Args: append(append(append([]string{}, s.env...), "virsh", "-q", "-c", "qemu:///session"), args...)})
	return p.Wait(), p.Output()
}

const domain = `<domain type='qemu'>
  <name>vm</name>
  <memory unit='MiB'>256</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>%s</kernel><initrd>%s</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 tsc=reliable</cmdline></os>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='%s'/></serial>
    <channel type='unix'><source mode='connect' path='%s'/><target type='virtio' name='port'/></channel>
    <interface type='user'>
      <backend type='passt' logFile='%s'/>
      <mac address='` + guestMAC + `'/>
      <source dev='h0'/>
      <portForward proto='tcp'><range start='2207' to='7'/><range start='2209' to='9'/></portForward>
      <portForward proto='udp'><range start='2207' to='7'/></portForward>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
  </devices>
</domain>
`

// TestLibvirt has libvirt start passt and QEMU.
func TestLibvirt(t *testing.T) {
	img := needImage(t)
	lab := netlab.New(t, netlab.Options{})
	s := startLibvirt(t, lab)
	_, version := s.virsh("version")
	t.Log(strings.ReplaceAll(version, "\n", "; "))
	v, log := newVM(t), filepath.Join(s.dir, "passt.log")
	xml := filepath.Join(v.dir, "vm.xml")
	if err := os.WriteFile(xml, fmt.Appendf(nil, domain, img.kernel, img.initrd, v.console, filepath.Join(v.dir, "port"), log), 0o644); err != nil {
		t.Fatal(err)
	}
	create := func() {
		since := time.Now()
		if st, out := s.virsh("create", xml); st != 0 {
			b, _ := os.ReadFile(log)
			if strings.Contains(string(out), "element 'backend'") || strings.Contains(string(b), "element 'backend'") {
				t.Skip("this libvirt has no passt backend: 9.2 has")
			}
			t.Fatalf("virsh create: %s\n%s", out, b)
		}
		t.Logf("created after %v", time.Since(since).Round(time.Millisecond))
		if err := v.accept(); err != nil {
			t.Fatal(err)
		}
		if err := v.ready(); err != nil {
			t.Fatalf("the guest does not come up: %v", err)
		}
	}
	t.Cleanup(func() { s.virsh("destroy", "vm") })
	create()
	pid := s.passt(t)
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	t.Log(strings.ReplaceAll(string(b), "\x00", " "))
	t.Run("network", func(t *testing.T) {
		v.lease(t, true)
		testPing(t, v)
		testTransfer(t, lab, v, 1<<20)
		testInbound(t, lab)
		testGateway(t, lab, v)
	})
	t.Run("passt killed", func(t *testing.T) {
		if reconnect(t) == "" {
			t.Skip("this QEMU's -netdev stream cannot reconnect: 8.0 can")
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		since := time.Now()
		for v.reaches("192.0.2.9") != nil {
			if time.Since(since) > 30*time.Second {
				t.Fatal("no connection again")
			}
		}
		t.Logf("works again after %v", time.Since(since).Round(100*time.Millisecond))
		testInbound(t, lab)
	})
	t.Run("destroyed", func(t *testing.T) {
		last := netlab.Children(s.passt(t))
		if st, out := s.virsh("destroy", "vm"); st != 0 {
			t.Fatal(out)
		}
		gone(t, last, 10*time.Second)
	})
	t.Run("again", func(t *testing.T) {
		create()
		v.lease(t, true)
		testInbound(t, lab)
	})
}

// passt returns the process id of the passt that libvirt has started.
func (s *session) passt(t *testing.T) int {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(s.dir, "run/libvirt/qemu/run/passt/*.pid"))
	if len(files) != 1 {
		t.Fatalf("PID files: %v", files)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
