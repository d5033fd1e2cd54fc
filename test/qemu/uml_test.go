// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"aldente/test/netlab"
)

// umlScript is the first process of user-mode Linux: it asks for a lease, pings, sends and
// receives, and tells of each on the console. Debian's has IPv6 as a module alone.
const umlScript = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
ip link set lo up
ip link set vec0 up
udhcpc -q -n -t 20 -T 1 -i vec0 -s /etc/lease
echo "told: lease $(ip -4 addr show vec0 | grep -c 192.0.2.2/24)"
for k in 1 2 3 4 5 6 7 8 9 10; do
	ping -c 1 -W 2 192.0.2.9 >/dev/null && echo "told: ping" && break
done
echo "told: down $(nc 192.0.2.9 5001 </dev/null | md5sum)"
dd if=/dev/urandom of=/tmp/up bs=64k count=64 2>/dev/null
nc 192.0.2.9 5002 </tmp/up >/dev/null
echo "told: up $(md5sum </tmp/up)"
poweroff -f
`

var umlMade = sync.OnceValues(fetchUML)

// fetchUML downloads Debian's user-mode Linux once. The system gets nothing installed.
func fetchUML() (string, error) {
	root, err := filepath.Abs(filepath.Join(cache, "uml"))
	if err != nil {
		return "", err
	}
	program := filepath.Join(root, "usr/bin/linux.uml")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return "", err
	}
	part, err := os.MkdirTemp(filepath.Dir(root), "part")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(part)
	fetch := exec.Command("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "user-mode-linux")
	fetch.Dir = part
	if out, err := fetch.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(fetch.Args, " "), err, out)
	}
	for _, deb := range found(part, "*.deb") {
		if out, err := exec.Command("dpkg", "-x", deb, filepath.Join(part, "root")).CombinedOutput(); err != nil {
			return "", fmt.Errorf("dpkg: %w\n%s", err, out)
		}
	}
	return program, errors.Join(os.Chmod(part, 0o755), os.Rename(filepath.Join(part, "root"), root))
}

// umlImage is the file system that it starts with.
func umlImage(t *testing.T) string {
	t.Helper()
	var a archive
	for _, d := range []string{"bin", "dev", "proc", "sys", "etc", "tmp"} {
		a.add(d, 0o40755, nil)
	}
	if err := addPrograms(&a); err != nil {
		t.Fatal(err)
	}
	a.add("umlinit", 0o100755, []byte(umlScript))
	name := filepath.Join(netlab.Stage(), "uml.initrd")
	if err := os.WriteFile(name, a.bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestUserModeLinux has user-mode Linux connect to a seqpacket socket, by its transport of
// BESS's protocol.
func TestUserModeLinux(t *testing.T) {
	if testing.Short() {
		t.Skip("heavy: boots a kernel")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("Debian has user-mode Linux for amd64")
	}
	netlab.Have(t, "busybox")
	program, err := umlMade()
	if err != nil {
		t.Fatalf("no user-mode Linux: %v", err)
	}
	image := umlImage(t)
	lab := netlab.New(t, netlab.Options{})
	sums := make(chan string, 2)
	for port, serve := range map[string]func(net.Conn, io.Writer) error{
		":5001": func(c net.Conn, sum io.Writer) error {
			_, err := io.Copy(io.MultiWriter(c, sum), io.LimitReader(rand.NewChaCha8([32]byte{}), 4<<20))
			return err
		},
		":5002": func(c net.Conn, sum io.Writer) error { _, err := io.Copy(sum, io.LimitReader(c, 4<<20)); return err },
	} {
		ln := lab.Remote.Listen("tcp", "192.0.2.9"+port)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			sum := md5.New()
			err = serve(c, sum)
			sums <- fmt.Sprintf("%s %x %v", port, sum.Sum(nil), err)
		}()
	}
	p, path := startMessages(t, lab, "seqpacket")
	dir := filepath.Dir(path)
	u := lab.Host.Start(netlab.Spec{
		Args: []string{program, "uml_dir=" + dir + "/", "mem=192M", "initrd=" + image, "root=/dev/ram", "rdinit=/umlinit", "con=null", "con0=null,fd:1", "ssl=null",
			"vec0:transport=bess,dst=" + path + ",src=" + filepath.Join(dir, "uml") + ",depth=64"},
		Env: []string{"TMPDIR=" + dir}, Dir: dir, User: netlab.Nobody, Timeout: 4 * time.Minute,
	})
	if _, ok := u.WaitFor(4 * time.Minute); !ok {
		t.Error("it does not end")
	}
	said := u.Output()
	want := []string{"told: lease 1", "told: ping"}
	for range 2 {
		select {
		case s := <-sums:
			f := strings.Fields(s)
			if f[2] != "<nil>" {
				t.Error(s)
			}
			want = append(want, map[string]string{":5001": "told: down ", ":5002": "told: up "}[f[0]]+f[1])
		case <-time.After(20 * time.Second):
			t.Error("nothing sent or received")
		}
	}
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("no %q", w)
		}
	}
	if t.Failed() {
		t.Log(said)
	}
	ends(t, p, 20*time.Second)
}
