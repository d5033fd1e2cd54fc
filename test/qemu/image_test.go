// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"aldente/test/netlab"
)

// cache is where what was fetched stays, below the repository's root.
const cache = "../../build/qemu"

// modules are the drivers that the guest loads; those that a kernel has built
// in, or does not have, are left out.
var modules = []string{
	"drivers/virtio/virtio.ko", "drivers/virtio/virtio_ring.ko",
	"drivers/virtio/virtio_pci_legacy_dev.ko", "drivers/virtio/virtio_pci_modern_dev.ko", "drivers/virtio/virtio_pci.ko",
	"net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko",
	"drivers/char/virtio_console.ko", "net/packet/af_packet.ko",
}

// image is a kernel and the file system in memory that it starts with.
type image struct{ kernel, initrd string }

var made = sync.OnceValues(makeImage)

// needImage makes the image once for all tests.
func needImage(t *testing.T) image {
	t.Helper()
	if testing.Short() {
		t.Skip("heavy: boots a virtual machine")
	}
	netlab.Have(t, "qemu-system-x86_64", "busybox")
	img, err := made()
	if err != nil {
		t.Fatalf("no guest to boot: %v", err)
	}
	return img
}

func makeImage() (img image, err error) {
	root, err := fetchKernel()
	if err != nil {
		return img, err
	}
	kernels := found(root, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
	trees := found(root, "lib/modules/*/kernel", "usr/lib/modules/*/kernel")
	if len(kernels) != 1 || len(trees) != 1 {
		return img, fmt.Errorf("%s: kernels %v, modules %v", root, kernels, trees)
	}
	dir := netlab.Stage()
	img = image{filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")}
	b, err := os.ReadFile(kernels[0])
	if err != nil {
		return img, err
	}
	if err := os.WriteFile(img.kernel, b, 0o644); err != nil {
		return img, err
	}
	var a archive
	for _, d := range []string{"bin", "dev", "proc", "sys", "etc", "tmp", "modules"} {
		a.add(d, 0o40755, nil)
	}
	if err := addPrograms(&a); err != nil {
		return img, err
	}
	for _, m := range modules {
		b, err := readModule(filepath.Join(trees[0], m))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return img, err
		}
		a.add("modules/"+filepath.Base(m), 0o100644, b)
	}
	return img, os.WriteFile(img.initrd, a.bytes(), 0o644)
}

// found returns what is at one of the places.
func found(root string, patterns ...string) (names []string) {
	for _, p := range patterns {
		n, _ := filepath.Glob(filepath.Join(root, p))
		names = append(names, n...)
	}
	return names
}

// readModule reads a driver, compressed or not.
func readModule(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if !errors.Is(err, os.ErrNotExist) {
		return b, err
	}
	if _, err := os.Stat(name + ".xz"); err != nil {
		return nil, err
	}
	return exec.Command("xz", "-dc", name+".xz").Output()
}

// leaseScript is what udhcpc calls: it sets up what the lease says, and keeps
// all of it for the test to read.
const leaseScript = `#!/bin/sh
set > /tmp/lease.$1
case $1 in
bound|renew)
	ip addr replace $ip/$mask dev $interface
	test -n "$mtu" && ip link set $interface mtu $mtu
	for r in $router; do ip route replace default via $r; done
	test -n "$hostname" && hostname $hostname
	: > /etc/resolv.conf
	test -n "$search" && echo search $search >> /etc/resolv.conf
	for d in $dns; do echo nameserver $d >> /etc/resolv.conf; done
	;;
esac
`

// GuestEnv names the environment variable that has the guest's first process,
// for where there is no compiler.
const GuestEnv = "ALDENTE_TEST_GUEST"

// addPrograms adds the guest's first process and busybox.
func addPrograms(a *archive) error {
	guest := os.Getenv(GuestEnv)
	if guest == "" {
		guest = filepath.Join(netlab.Stage(), "guest")
		build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", guest, "./guest")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("go build ./guest: %w\n%s", err, out)
		}
	}
	b, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	a.add("init", 0o100755, b)
	a.link("bin/guest", "/init")
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	if b, err = os.ReadFile(path); err != nil {
		return err
	}
	if bytes.Contains(b, []byte("/ld-linux")) {
		return fmt.Errorf("%s is not static: install busybox-static", path)
	}
	a.add("bin/busybox", 0o100755, b)
	a.add("etc/lease", 0o100755, []byte(leaseScript))
	return nil
}

// fetchKernel downloads Debian's kernel for virtual machines once and returns
// where it is laid out. The system gets nothing installed.
func fetchKernel() (string, error) {
	image, err := depends("linux-image-cloud-amd64", `linux-image-\S+`)
	if err != nil {
		return "", err
	}
	if len(image) != 1 {
		return "", errors.New("apt-cache does not know linux-image-cloud-amd64: apt-get update may be needed")
	}
	root, err := filepath.Abs(filepath.Join(cache, image[0]))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	// Since Debian 14 the kernel and its drivers are packages of their own.
	parts, err := depends(image[0], `linux-(?:binary|modules)-\S+`)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return "", err
	}
	part, err := os.MkdirTemp(filepath.Dir(root), "part")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(part)
	fetch := exec.Command("apt-get", slices.Concat([]string{"-q", "-o", "APT::Sandbox::User=root", "download", image[0]}, parts)...)
	fetch.Dir = part
	if out, err := fetch.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(fetch.Args, " "), err, out)
	}
	for _, deb := range found(part, "*.deb") {
		if out, err := exec.Command("dpkg", "-x", deb, filepath.Join(part, "root")).CombinedOutput(); err != nil {
			return "", fmt.Errorf("dpkg: %w\n%s", err, out)
		}
	}
	return root, os.Rename(filepath.Join(part, "root"), root)
}

// depends returns the names among the packages that a package needs.
func depends(name, pattern string) (names []string, err error) {
	out, err := exec.Command("apt-cache", "depends", name).Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache: %w", err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\s*Depends: (`+pattern+`)$`).FindAllSubmatch(out, -1) {
		names = append(names, string(m[1]))
	}
	return names, nil
}

// archive is a file system as the kernel unpacks it: cpio's "newc" format,
// Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	b   bytes.Buffer
	ino int
}

func (a *archive) add(name string, mode int, data []byte) {
	a.ino++
	fmt.Fprintf(&a.b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.b.WriteString(name + "\x00")
	a.pad()
	a.b.Write(data)
	a.pad()
}

func (a *archive) link(name, target string) { a.add(name, 0o120777, []byte(target)) }

func (a *archive) pad() {
	for a.b.Len()%4 != 0 {
		a.b.WriteByte(0)
	}
}

func (a *archive) bytes() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.b.Bytes()
}
