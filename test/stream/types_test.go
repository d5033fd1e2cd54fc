// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	"aldente/test/netlab"
)

// startAs is start with a socket of another type.
func startAs(t *testing.T, lab *netlab.Lab, typ string, args ...string) *passt {
	t.Helper()
	path := filepath.Join(machine.OpenDir(t), "socket")
	all := append([]string{"-f", "-s", path, "--socket-type", typ}, args...)
	run := lab.For(t).StartPasta(netlab.GuestSpec{Binary: machine.Program(t), User: netlab.Nobody, Timeout: 5 * time.Minute}, all...)
	p := &passt{&machine.Passt{Proc: run, Path: path}}
	for range 1000 {
		if strings.Contains(p.Output(), "socket bound at") {
			return p
		}
		if p.Exited() {
			t.Fatalf("passt ended with status %d: %s", p.Wait(), p.Output())
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("passt does not come up: %s", p.Output())
	return nil
}

// machineOn is a machine that sends frames to passt's socket, from a socket at path.
func machineOn(t *testing.T, p *passt, typ int, path string) *framesOf {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	if typ == unix.SOCK_DGRAM {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for tries := 0; ; tries++ {
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: p.Path})
		if err == nil {
			break
		}
		if time.Sleep(10 * time.Millisecond); tries > 3000 {
			t.Fatal(err)
		}
	}
	return &framesOf{t: t, fd: fd, typ: typ}
}

// answers tells whether a request for the router's address is answered.
func (f *framesOf) answers(within time.Duration) bool {
	f.t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		if f.typ == unix.SOCK_STREAM {
			f.put(arp())
		} else if _, err := unix.Write(f.fd, arp()); err != nil {
			time.Sleep(10 * time.Millisecond) // it still waits for the last client
			continue
		}
		for {
			frame := f.next(500 * time.Millisecond)
			if frame == nil {
				break
			}
			if len(frame) >= 42 && binary.BigEndian.Uint16(frame[12:]) == 0x0806 && frame[21] == 2 {
				return true
			}
		}
	}
	return false
}

// TestSocketTypes: machines that come to a socket that keeps the bounds of frames are
// served one after the other, each by a worker that has seen none before where they
// share the socket, and no second one beside the first.
func TestSocketTypes(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, s := range sockets {
		t.Run(s.name, func(t *testing.T) {
			p := startAs(t, lab, s.name)
			dir := machine.OpenDir(t)
			a := machineOn(t, p, s.typ, filepath.Join(dir, "a"))
			if s.typ == unix.SOCK_DGRAM {
				a.put([]byte("VFKT")) // as libkrun does, and vfkit
			}
			if !a.answers(20 * time.Second) {
				t.Fatal("no answer")
			}
			worker := p.Worker(t)
			second, err := unix.Socket(unix.AF_UNIX, s.typ|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(second)
			switch err := unix.Connect(second, &unix.SockaddrUnix{Name: p.Path}); {
			case s.typ == unix.SOCK_DGRAM && err != unix.EPERM:
				t.Errorf("a second machine beside the first: %v", err)
			case s.typ != unix.SOCK_DGRAM && err != nil:
				t.Error(err)
			case s.typ != unix.SOCK_DGRAM:
				if b := (&framesOf{t: t, fd: second, typ: s.typ}); b.next(20*time.Second) != nil {
					t.Error("a second machine beside the first")
				}
			}
			if !a.answers(20 * time.Second) {
				t.Fatal("the first is not served any more")
			}
			unix.Close(a.fd)
			a.fd = -1
			b := machineOn(t, p, s.typ, filepath.Join(dir, "b"))
			if !b.answers(40 * time.Second) {
				t.Fatal("the next machine is not served")
			}
			if now := p.Worker(t); s.typ == unix.SOCK_DGRAM && now == worker {
				t.Error("by a worker that had the socket before")
			}
			if p.Exited() {
				t.Error("passt has ended")
			}
		})
	}
}

// TestSocketTypesOneOff: with --one-off the first machine is the only one.
func TestSocketTypesOneOff(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, s := range sockets {
		t.Run(s.name, func(t *testing.T) {
			p := startAs(t, lab, s.name, "--one-off")
			a := machineOn(t, p, s.typ, filepath.Join(machine.OpenDir(t), "a"))
			if !a.answers(20 * time.Second) {
				t.Fatal("no answer")
			}
			unix.Close(a.fd)
			if st, ok := p.WaitFor(30 * time.Second); !ok || st != 0 {
				t.Errorf("ended %v with status %d", ok, st)
			}
		})
	}
}

// TestWorkerOfMessages: a worker that dies loses its connections, and what keeps the bounds
// of frames is served by the next.
func TestWorkerOfMessages(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, s := range sockets[1:] {
		t.Run(s.name, func(t *testing.T) {
			p := giveOne(t, lab.For(t), s.typ)
			c := &framesOf{t: t, fd: int(p.ours.Fd()), typ: s.typ}
			if !c.answers(20 * time.Second) {
				t.Fatal("no answer")
			}
			run := &machine.Passt{Proc: &netlab.Proc{PID: p.cmd.Process.Pid}}
			worker := run.Worker(t)
			_ = unix.Kill(worker, unix.SIGKILL)
			if !c.answers(30 * time.Second) {
				t.Fatal("no answer of the next worker")
			}
			p.ours.Close()
			p.ends(t, 30*time.Second)
		})
	}
}

// TestGivenTap: a tap that is passed on is the guest's link, with a header for offloads
// or without, and passt ends with it.
func TestGivenTap(t *testing.T) {
	machine.NeedOurs(t)
	for name, flags := range map[string]uint16{"with offloads": unix.IFF_VNET_HDR, "plain": 0} {
		t.Run(name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			g := newGuest(t)
			var tap *os.File
			if err := g.Do(func() (err error) { tap, err = plainTap(unix.IFF_TAP | unix.IFF_NO_PI | flags); return }); err != nil {
				t.Fatal(err)
			}
			cmd := giveCommand(t, tap, "-f", "-q", "--fd", "7", "-m", "1500")
			if err := lab.Host.Do(cmd.Start); err != nil {
				t.Fatal(err)
			}
			tap.Close()
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() { _ = cmd.Process.Kill() }()
			g.IP("link set tap7 mtu 1500 txqueuelen 10000 up", "addr add "+netlab.Host4+"/24 dev tap7", "route add default via "+netlab.Gateway4,
				"addr add "+netlab.Host6+"/64 dev tap7 nodad", "-6 route add default via "+netlab.Gateway6+" dev tap7")
			before := g.Counters()
			for _, f := range families {
				for _, down := range []bool{false, true} {
					addr := f.remote + ":5001"
					if err := netlab.Transfer(g.NS, lab.Remote, addr, addr, 8<<20, down, time.Minute); err != nil {
						t.Errorf("%s, down=%v: %v", f.name, down, err)
					}
				}
			}
			for k, v := range g.Since(before, "TcpInCsumErrors", "IpInHdrErrors", "Ip6InHdrErrors") {
				if v > 0 {
					t.Errorf("%s: %d", k, v)
				}
			}
			g.IP("link del tap7")
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("ended: %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("it outlives the tap")
			}
		})
	}
}

// plainTap makes a tap in the caller's namespace.
func plainTap(flags uint16) (*os.File, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r, err := unix.NewIfreq("tap7")
	if err == nil {
		r.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tap: %w", err)
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}

// slirpProgram is the program by the name of slirp4netns.
func slirpProgram(t *testing.T) string {
	return filepath.Join(filepath.Dir(machine.Program(t)), "slirp4netns")
}

// TestSlirpTap: a tap that is passed on to slirp4netns connects a guest of its network, and
// is told of its end.
func TestSlirpTap(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := newGuest(t)
	var tap *os.File
	if err := g.Do(func() (err error) { tap, err = plainTap(unix.IFF_TAP | unix.IFF_NO_PI); return }); err != nil {
		t.Fatal(err)
	}
	cmd := giveCommand(t, tap, "--netns-type=tapfd", "-m", "1500", "7", "tap7")
	cmd.Path = slirpProgram(t)
	cmd.Args[0] = cmd.Path
	if err := lab.Host.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	tap.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	g.IP("link set tap7 up", "addr add 10.0.2.100/24 dev tap7", "route add default via 10.0.2.2")
	for _, down := range []bool{false, true} {
		if err := netlab.Transfer(g.NS, lab.Remote, "192.0.2.9:5001", "192.0.2.9:5001", 4<<20, down, time.Minute); err != nil {
			t.Errorf("down=%v: %v", down, err)
		}
	}
	g.IP("link del tap7")
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("ended: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it outlives the tap")
	}
}

// TestSlirpBess: a User Mode Linux comes by the socket of slirp4netns, one after the other.
func TestSlirpBess(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	path := filepath.Join(machine.OpenDir(t), "bess")
	run := lab.StartPasta(netlab.GuestSpec{Binary: slirpProgram(t), User: netlab.Nobody, Timeout: time.Minute}, "--target-type=bess", path)
	p := &passt{&machine.Passt{Proc: run, Path: path}}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.Output(), "socket bound at"); time.Sleep(10 * time.Millisecond) {
		if p.Exited() || time.Now().After(deadline) {
			t.Fatalf("it does not come up: %s", p.Output())
		}
	}
	for range 2 {
		m := machineOn(t, p, unix.SOCK_SEQPACKET, "")
		if !m.answers(20 * time.Second) {
			t.Fatal("no answer")
		}
		unix.Close(m.fd)
		m.fd = -1
	}
}
