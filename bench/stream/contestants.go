// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"aldente/test/netlab"
	"aldente/test/stream/standin"
	"aldente/test/vhost/frontend"
)

// contestant is one of the translators.
type contestant struct {
	name   string
	binary string
	start  func(c contestant, host *netlab.NS, socket string, mtu int) *netlab.Proc
	join   func(o options, socket string, mtu int) (guestEnd, error)
	addr   string // the guest's address and prefix length
	router string // the guest's
}

// guestEnd is a process that stands in for a virtual machine monitor.
type guestEnd interface {
	PID() int
	Kill()
}

// contestants returns those that are present, aldente last.
func contestants(o options) []contestant {
	passt := func(name, binary string) contestant {
		return contestant{name, binary, startPasst, joinStream, netlab.Host4 + "/24", netlab.Gateway4}
	}
	vhostUser := func(name, binary string) contestant {
		return contestant{name, binary, startVhostUser, joinVhostUser, netlab.Host4 + "/24", netlab.Gateway4}
	}
	link, all := passt, []contestant{passt("passt", o.passt), {"gvproxy", o.gvproxy, startGvproxy, joinStream, "192.168.127.2/24", "192.168.127.1"}}
	if o.vhostUser {
		link, all = vhostUser, []contestant{vhostUser("passt", o.passt), passt(ours+", stream", o.ours)}
	}
	for _, v := range o.with {
		all = append(all, link(v.name, v.path))
	}
	all = append(all, link(ours, o.ours))
	var present []contestant
	for _, c := range all {
		if c.binary != "" && o.only.MatchString(c.name) {
			present = append(present, c)
		}
	}
	return present
}

const ours = "aldente"

// startPasst starts passt or our own; the gateway is not mapped, so that every
// packet goes to the remote.
func startPasst(c contestant, host *netlab.NS, socket string, mtu int) *netlab.Proc {
	return host.Start(netlab.Spec{User: netlab.Nobody, Timeout: time.Hour,
		Args: []string{c.binary, "-f", "-s", socket, "--no-map-gw", "-m", fmt.Sprint(mtu), "--no-dhcp-dns", "--no-dhcp-search"}})
}

// startVhostUser is startPasst for the other link.
func startVhostUser(c contestant, host *netlab.NS, socket string, mtu int) *netlab.Proc {
	return host.Start(netlab.Spec{User: netlab.Nobody, Timeout: time.Hour,
		Args: []string{c.binary, "-f", "--vhost-user", "-s", socket, "--no-map-gw", "-m", fmt.Sprint(mtu), "--no-dhcp-dns", "--no-dhcp-search"}})
}

func joinStream(o options, socket string, mtu int) (guestEnd, error) {
	if o.plain {
		return standin.Start(socket)
	}
	return standin.StartFast(socket, mtu)
}

// joinVhostUser joins with what a Linux guest behind QEMU asks for.
func joinVhostUser(o options, socket string, mtu int) (guestEnd, error) {
	if o.plain {
		mtu = 0
	}
	return frontend.Start(frontend.Options{Socket: socket, MTU: mtu, Indirect: true, Piece: o.piece,
		Config: frontend.Config{Features: frontend.AllFeatures, Protocol: frontend.AllProtocol, Ring: uint16(o.ring)}})
}

func startGvproxy(c contestant, host *netlab.NS, socket string, mtu int) *netlab.Proc {
	return host.Start(netlab.Spec{User: netlab.Nobody, Timeout: time.Hour,
		Args: []string{c.binary, "-listen-qemu", "unix://" + socket, "-mtu", fmt.Sprint(mtu), "-ssh-port", "-1"}})
}

// buildGvproxy compiles the version of gvproxy that the module proxy calls the
// latest, in a module of its own.
func buildGvproxy(cache string) (string, error) {
	dir, err := filepath.Abs(filepath.Join(cache, "gvproxy"))
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "gvproxy")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module peer\n\ngo 1.24\n"), 0o644); err != nil {
		return "", err
	}
	const pkg = "github.com/containers/gvisor-tap-vsock/cmd/gvproxy"
	for _, args := range [][]string{
		{"go", "get", pkg + "@latest"},
		{"go", "build", "-mod=mod", "-o", out, pkg},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if b, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, b)
		}
	}
	return out, nil
}

// stageCopy puts a program where the unprivileged user may run it.
func stageCopy(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	to := filepath.Join(netlab.Stage(), "peer-"+filepath.Base(path))
	return to, os.WriteFile(to, b, 0o755)
}
