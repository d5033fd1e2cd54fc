// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// libvirt is a daemon of libvirt's: a user's, or the system's.
type libvirt struct {
	t      *testing.T
	lab    *netlab.Lab
	system bool
	user   *netlab.User
	dir    string
	run    string   // where the daemon keeps sockets and PID files
	env    []string // how to start one of its programs
}

// startLibvirt starts a daemon on the lab's host, with our passt first in its
// path and nothing of another daemon's.
func startLibvirt(t *testing.T, lab *netlab.Lab, system bool) *libvirt {
	t.Helper()
	daemon := found("/usr", "sbin/virtqemud", "bin/virtqemud", "sbin/libvirtd", "bin/libvirtd")
	if _, err := exec.LookPath("virsh"); err != nil || daemon == nil {
		t.Skip("libvirt is not installed: packages libvirt-daemon, libvirt-daemon-driver-qemu and libvirt-clients")
	}
	if netlab.Nested() {
		t.Skip("needs root, to become another user than root")
	}
	s := &libvirt{t: t, lab: lab, system: system, dir: filepath.Join(netlab.Stage(), "lv")}
	for _, d := range []string{"", "run", "lib", "log", "config/libvirt", "cache"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	// Without virtlogd, and without a profile for each machine.
	conf := filepath.Join(s.dir, "config/libvirt/qemu.conf")
	if err := os.WriteFile(conf, []byte("stdio_handler = \"file\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + filepath.Dir(netlab.Pasta()) + ":/usr/bin:/usr/sbin:/bin:/sbin"
	if system {
		s.ownSystem(path)
	} else {
		s.ownSession(path)
	}
	p := lab.Host.Start(netlab.Spec{Args: append(s.env, daemon[0], "--timeout", "300"), User: s.user, Timeout: 10 * time.Minute})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s: %s", daemon[0], p.Output())
			for _, l := range found(s.dir, "log/qemu/vm.log", "cache/libvirt/qemu/log/vm.log") {
				b, _ := os.ReadFile(l)
				t.Logf("%s", b)
			}
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

// ownSession is for programs of one user's.
func (s *libvirt) ownSession(path string) {
	s.user, s.run = libvirtUser, filepath.Join(s.dir, "run/libvirt/qemu/run/passt")
	s.env = []string{"env", "HOME=" + s.dir, "XDG_RUNTIME_DIR=" + s.dir + "/run", "XDG_CONFIG_HOME=" + s.dir + "/config",
		"XDG_CACHE_HOME=" + s.dir + "/cache", path}
	if out, err := exec.Command("chown", "-R", fmt.Sprintf("%d:%d", libvirtUser.UID, libvirtUser.GID), s.dir).CombinedOutput(); err != nil {
		s.t.Fatalf("chown: %v %s", err, out)
	}
}

// ownSystem is for root's programs: with folders of the system's that are the
// test's.
func (s *libvirt) ownSystem(path string) {
	s.run = filepath.Join(s.dir, "run/qemu/passt")
	s.env = []string{"unshare", "-m", "sh", "-c", `cd "$0" && for d in run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt \
		cache:/var/cache/libvirt config/libvirt:/etc/libvirt; do
			mkdir -p "${d#*:}" && mount --bind "${d%%:*}" "${d#*:}" || exit
		done; test ! -e /dev/kvm || mount --bind /dev/null /dev/kvm; cd /; exec env "$@"`, s.dir, path}
}

func (s *libvirt) virsh(args ...string) (int, string) {
	uri := "qemu:///session"
	if s.system {
		uri = "qemu:///system"
	}
	p := s.lab.Host.Start(netlab.Spec{User: s.user, Dir: "/", Timeout: 2 * time.Minute,
		Args: slices.Concat(s.env, []string{"virsh", "-q", "-c", uri}, args)})
	return p.Wait(), p.Output()
}

const domain = `<domain type='qemu'>
  <name>vm</name>
  <memory unit='MiB'>256</memory>%s
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
    <interface type='%s'>
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

// sharedDomain is what a domain needs whose memory another process maps.
const sharedDomain = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

// TestLibvirt has libvirt start passt and QEMU.
func TestLibvirt(t *testing.T) {
	img := needImage(t)
	for _, tt := range []struct {
		name, kind, memory string
		system             bool
	}{
		{"session", "user", "", false},
		{"session, vhost-user", "vhostuser", sharedDomain, false},
		{"system", "user", "", true},
		{"system, vhost-user", "vhostuser", sharedDomain, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.system || tt.memory != "" {
				needEvery(t)
			}
			lab := netlab.New(t, netlab.Options{})
			s := startLibvirt(t, lab, tt.system)
			v := newVM(t)
			log := filepath.Join(v.dir, "passt.log")
			testLibvirt(t, lab, s, v, log, fmt.Sprintf(domain, tt.memory, img.kernel, img.initrd, v.console, filepath.Join(v.dir, "port"), tt.kind, log))
		})
	}
}

func testLibvirt(t *testing.T, lab *netlab.Lab, s *libvirt, v *vm, log, text string) {
	_, version := s.virsh("version")
	t.Log(strings.ReplaceAll(version, "\n", "; "))
	xml := filepath.Join(v.dir, "vm.xml")
	if err := os.WriteFile(xml, []byte(text), 0o644); err != nil {
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
func (s *libvirt) passt(t *testing.T) int {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(s.run, "*.pid"))
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
