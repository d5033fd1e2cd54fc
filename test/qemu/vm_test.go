// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

const (
	guestMAC = "52:54:00:12:34:56"
	// slaac6 is the address that a guest with this MAC makes of the lab's
	// prefix, RFC 4291 appendix A.
	slaac6 = "2001:db8:1:0:5054:ff:fe12:3456"
)

// version is QEMU's: 902 is 9.2.
func version(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("qemu-system-x86_64", "--version").Output()
	m := regexp.MustCompile(`version (\d+)\.(\d+)`).FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("qemu-system-x86_64 --version: %v %s", err, out)
	}
	major, _ := strconv.Atoi(string(m[1]))
	minor, _ := strconv.Atoi(string(m[2]))
	return major*100 + minor
}

// reconnect is the option that makes QEMU connect again, as far as this
// version has it.
func reconnect(t *testing.T) string {
	t.Helper()
	switch v := version(t); {
	case v >= 902:
		return ",reconnect-ms=500"
	case v >= 800:
		return ",reconnect=1"
	}
	return ""
}

// vm is a virtual machine.
type vm struct {
	t       *testing.T
	dir     string // open to any user
	port    *net.UnixListener
	proc    *exec.Cmd     // QEMU, unless libvirt started it
	done    chan struct{} // closed when that has ended
	conn    net.Conn
	console string
	errors  strings.Builder // what QEMU writes to standard error

	hello chan struct{} // a value each time that a guest is up

	mu      sync.Mutex
	next    int
	waiting map[int]chan reply
}

type request struct {
	ID   int
	Args []string
}

type reply struct {
	ID     int
	Status int
	Output string
}

// link is what QEMU is told of the guest's network.
type link struct {
	args []string // of the back-end, whose id is n
	card string   // further properties of the card
}

// netdev is a link that needs one option.
func netdev(text string) link { return link{args: []string{"-netdev", text}} }

// boot starts QEMU as an unprivileged user in the namespace and waits for its
// guest. files are its descriptors from 3 on.
func boot(t *testing.T, host *netlab.NS, l link, files ...*os.File) *vm {
	t.Helper()
	return bootImage(t, host, needImage(t), l, files...)
}

// bootImage is boot of an image that not all machines have.
func bootImage(t *testing.T, host *netlab.NS, img image, l link, files ...*os.File) *vm {
	t.Helper()
	v := launch(t, host, files, slices.Concat(l.args, []string{"-kernel", img.kernel, "-initrd", img.initrd,
		"-append", "console=ttyS0 quiet panic=-1 tsc=reliable",
		"-device", "virtio-net-pci,netdev=n,romfile=,mac=" + guestMAC + l.card})...)
	v.up(t)
	return v
}

// up waits for a guest that has just been started.
func (v *vm) up(t *testing.T) {
	t.Helper()
	since := time.Now()
	if err := v.ready(); err != nil {
		t.Fatalf("the guest does not come up: %v", err)
	}
	t.Logf("guest up after %v", time.Since(since).Round(100*time.Millisecond))
}

// newVM opens the port through which a guest takes commands.
func newVM(t *testing.T) *vm {
	t.Helper()
	dir, err := os.MkdirTemp(netlab.Stage(), "vm")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{t: t, dir: dir, console: filepath.Join(dir, "console"), done: make(chan struct{}),
		hello: make(chan struct{}, 8), waiting: map[int]chan reply{}}
	v.port, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "port"), Net: "unix"})
	if err == nil {
		err = os.Chmod(filepath.Join(dir, "port"), 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(v.console); err == nil && t.Failed() {
			t.Logf("console:\n%s\nQEMU: %s", b, v.errors.String())
		}
		v.port.Close()
		if v.conn != nil {
			v.conn.Close()
		}
	})
	return v
}

// accept waits for QEMU to open its end of the port.
func (v *vm) accept() (err error) {
	_ = v.port.SetDeadline(time.Now().Add(15 * time.Second))
	if v.conn, err = v.port.Accept(); err == nil {
		go v.read(v.conn)
	}
	return err
}

// read hands out what guests say, up to QEMU's end.
func (v *vm) read(from net.Conn) {
	in := bufio.NewReader(from)
	for {
		b, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var r reply
		if json.Unmarshal(b, &r) != nil {
			continue
		}
		if r.ID == 0 {
			v.hello <- struct{}{}
			continue
		}
		v.mu.Lock()
		c := v.waiting[r.ID]
		delete(v.waiting, r.ID)
		v.mu.Unlock()
		if c != nil {
			c <- r
		}
	}
}

// launch starts QEMU as an unprivileged user.
func launch(t *testing.T, host *netlab.NS, files []*os.File, args ...string) *vm {
	t.Helper()
	v := newVM(t)
	v.proc = exec.Command("qemu-system-x86_64", slices.Concat([]string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "pc,accel=tcg", "-cpu", "max", "-m", "256",
		"-serial", "file:" + v.console, "-device", "virtio-serial-pci", "-chardev", "socket,id=c,path=" + filepath.Join(v.dir, "port"),
		"-device", "virtserialport,chardev=c"}, args)...)
	v.proc.ExtraFiles = files
	v.proc.Stderr = &v.errors
	v.proc.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !netlab.Nested() {
		v.proc.SysProcAttr.Credential = &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}
	}
	if err := host.Do(v.proc.Start); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = v.proc.Wait()
		close(v.done)
	}()
	t.Cleanup(v.kill)
	if err := v.accept(); err != nil {
		v.kill()
		t.Fatalf("QEMU does not start: %v", err)
	}
	return v
}

// ready waits for the guest's first word.
func (v *vm) ready() error {
	select {
	case <-v.hello:
		return nil
	case <-v.done:
		return fmt.Errorf("QEMU ended: %v", v.proc.ProcessState)
	case <-time.After(2 * time.Minute):
		return errors.New("no word from it for two minutes")
	}
}

// kill ends QEMU the hard way.
func (v *vm) kill() {
	_ = v.proc.Process.Kill()
	<-v.done
}

// run runs a command in the guest and returns its status and output.
func (v *vm) run(args ...string) (int, string) {
	c := make(chan reply, 1)
	v.mu.Lock()
	v.next++
	b, _ := json.Marshal(request{v.next, args})
	v.waiting[v.next] = c
	_, err := v.conn.Write(append(b, '\n'))
	v.mu.Unlock()
	if err != nil {
		return -1, err.Error()
	}
	select {
	case r := <-c:
		return r.Status, r.Output
	case <-v.done:
		return -1, "QEMU ended"
	case <-time.After(2 * time.Minute):
		return -1, "no end after two minutes"
	}
}

// must is run for commands that have to succeed.
func (v *vm) must(t *testing.T, args ...string) string {
	t.Helper()
	st, out := v.run(args...)
	if st != 0 {
		t.Fatalf("guest: %s: status %d\n%s", strings.Join(args, " "), st, out)
	}
	return strings.TrimSpace(out)
}

// lease takes addresses: by DHCP, and if six is set by DHCPv6 too.
func (v *vm) lease(t *testing.T, six bool) {
	t.Helper()
	v.must(t, "ip", "link", "set", "eth0", "up")
	v.must(t, "udhcpc", "-i", "eth0", "-s", "/etc/lease", "-q", "-n", "-t", "5", "-T", "2",
		"-O", "mtu", "-O", "search", "-O", "staticroutes", "-x", "0x51:00", "-F", "vm.example.net")
	if six {
		v.addressed(t, "link", "fe80:")
		out := v.must(t, "guest", "dhcpv6", "eth0")
		m := regexp.MustCompile(`(?m)^address (\S+)$`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("DHCPv6: %s", out)
		}
		v.must(t, "ip", "-6", "addr", "replace", m[1]+"/128", "dev", "eth0")
	}
}

// reaches pings once.
func (v *vm) reaches(addr string) error {
	if st, out := v.run("ping", "-c", "1", "-W", "1", addr); st != 0 {
		return fmt.Errorf("%s: %s", addr, out)
	}
	return nil
}

// addressed waits until the guest has an IPv6 address that begins with prefix
// and is known to be unique.
func (v *vm) addressed(t *testing.T, scope, prefix string) {
	t.Helper()
	var out string
	for range 50 {
		out = v.must(t, "ip", "-6", "addr", "show", "dev", "eth0", "scope", scope)
		if strings.Contains(out, "inet6 "+prefix) && !strings.Contains(out, "tentative") && !strings.Contains(out, "dadfailed") {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("no address %s after five seconds:\n%s", prefix, out)
}

// passt is a running passt.
type passt struct {
	*netlab.Proc
	path string
}

// program is the passt beside the pasta under test.
func program(t *testing.T) string {
	t.Helper()
	if netlab.Pasta() == "" {
		t.Fatal("no program to test: run make first")
	}
	return filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
}

// startPasst starts passt in the foreground on the lab's host.
func startPasst(t *testing.T, lab *netlab.Lab, args ...string) *passt {
	t.Helper()
	return startPasstAt(t, lab, filepath.Join(socketFolder(t), "s"), args...)
}

// socketFolder makes a folder in which anybody may make a socket.
func socketFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(netlab.Stage(), "socket")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startPasstAt is startPasst with its socket at path.
func startPasstAt(t *testing.T, lab *netlab.Lab, path string, args ...string) *passt {
	t.Helper()
	p := &passt{path: path}
	argv := slices.Concat([]string{program(t), "-f", "-s", p.path}, args)
	p.Proc = lab.Host.Start(netlab.Spec{Args: argv, User: netlab.Nobody, Timeout: 10 * time.Minute})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", strings.Join(argv, " "), p.Output())
		}
	})
	for range 500 {
		if listens(lab.Host, p.path) {
			return p
		}
		if p.Exited() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("passt does not listen: %s", p.Output())
	return nil
}

// listens looks the socket up in the kernel's list: connecting would count as
// a client.
func listens(host *netlab.NS, path string) bool {
	for line := range strings.Lines(host.Read("/proc/net/unix")) {
		f := strings.Fields(line)
		// Flags 0x10000: it accepts connections.
		if len(f) == 8 && f[7] == path && f[3] == "00010000" {
			return true
		}
	}
	return false
}

// stream is QEMU's side of the socket.
func (p *passt) stream(t *testing.T) link {
	return netdev(fmt.Sprintf("stream,id=n,server=off,addr.type=unix,addr.path=%s%s", p.path, reconnect(t)))
}
