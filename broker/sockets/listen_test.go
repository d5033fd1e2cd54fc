// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc"
)

// TestListeners: a factory's listeners from their beginning to their end.
func TestListeners(t *testing.T) {
	for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP} {
		f := New(Config{V4: Family{Enabled: true}, V6: Family{Enabled: true}, MaxListeners: 2})
		t.Cleanup(f.Close)
		own := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		var l Listener
		err := error(unix.EADDRINUSE)
		for port := uint16(20000); errors.Is(err, unix.EADDRINUSE); port++ {
			l, err = f.Listen(Listener{Proto: proto, Addr: own, Port: port, GuestPort: 80})
		}
		if err != nil {
			t.Fatal(err)
		}
		port := l.Port
		if _, err := f.Listen(Listener{Proto: proto, Addr: own, Port: port}); !errors.Is(err, unix.EADDRINUSE) ||
			!strings.Contains(err.Error(), fmt.Sprintf("%s port 127.0.0.1:%d (another socket has it)", protoName(proto), port)) {
			t.Errorf("twice on one port: %v", err)
		}
		dual, err := f.Listen(Listener{Proto: proto})
		if err != nil {
			t.Fatal(err)
		}
		if v6only, err := unix.GetsockoptInt(dual.FD, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err != nil || v6only != 0 {
			t.Errorf("any address: for IPv6 only %d, %v", v6only, err)
		}
		if _, err := f.Listen(Listener{Proto: proto}); !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "ulimit -n") {
			t.Errorf("more than there may be: %v", err)
		}
		if all := f.Listeners(); len(all) != 2 || l.ID == dual.ID || l.ID == 0 {
			t.Errorf("%+v", all)
		}
		if err := f.Give(os.Geteuid(), os.Getegid()); err != nil {
			t.Errorf("given to ourselves: %v", err)
		}
		// What a worker has shut hears again, at the same port.
		_ = unix.Shutdown(l.FD, unix.SHUT_RDWR)
		revived, err := f.Revive(l)
		if err != nil || revived.ID != l.ID || inet.LocalPort(revived.FD) != port {
			t.Errorf("revived as %+v, %v", revived, err)
		}
		p := []unix.PollFd{{Fd: int32(revived.FD), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(p, 0); n != 0 || err != nil {
			t.Errorf("is shut: %#x, %v", p[0].Revents, err)
		}
		f.Unlisten(l.ID)
		f.Unlisten(l.ID) // of no concern
		if _, ok := f.listener(l.ID); ok || len(f.Listeners()) != 1 {
			t.Error("it is still there")
		}
		again := inet.Listener{At: netip.AddrPortFrom(own, port)}
		fd, err := again.ListenTCP()
		if proto == ipc.ProtoUDP {
			unix.Close(fd)
			fd, err = again.ListenUDP()
		}
		if err != nil {
			t.Errorf("its port: %v", err)
		}
		unix.Close(fd)
		f.Shut()
		f.Unlisten(dual.ID)
	}
}

// TestListenAlone: without IPv6 any address is one of IPv4.
func TestListenAlone(t *testing.T) {
	f := New(Config{V4: Family{Enabled: true}})
	t.Cleanup(f.Close)
	l, err := f.Bind(Listener{Proto: ipc.ProtoTCP})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l.FD)
	if domain, err := unix.GetsockoptInt(l.FD, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_INET {
		t.Errorf("family %d, %v", domain, err)
	}
	if _, err := f.Bind(Listener{Proto: ipc.ProtoTCP, Interface: "nosuchdevice"}); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "0%nosuchdevice") {
		t.Errorf("an interface that is not there: %v", err)
	}
}

// TestRecord: what the worker is told of a listener.
func TestRecord(t *testing.T) {
	target := netip.MustParseAddr("192.0.2.9")
	for _, tt := range []struct {
		l    Listener
		want ipc.Listener
	}{
		{Listener{ID: 7, Proto: ipc.ProtoTCP, Port: 80, GuestPort: 8080}, ipc.Listener{ID: 7, Proto: ipc.ProtoTCP, HostPort: 80, GuestPort: 8080}},
		{Listener{ID: 7, Namespace: true, Target: target}, ipc.Listener{ID: 7, Flags: ipc.ListenerNamespace}},
		{Listener{ID: 7, Target: target}, ipc.Listener{ID: 7, Target: target.As16()}},
	} {
		if got := tt.l.Record(); got != tt.want {
			t.Errorf("%+v: %+v, want %+v", tt.l, got, tt.want)
		}
	}
}

// TestOwner: who has a port, by name, where that can be known.
func TestOwner(t *testing.T) {
	f := knowing(t)
	at := inet.Listener{At: netip.MustParseAddrPort("127.0.0.1:0")}
	fd, err := at.ListenTCP()
	if err != nil {
		t.Fatal(err)
	}
	port := inet.LocalPort(fd)
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	holds := exec.Command("sleep", "60")
	holds.ExtraFiles = []*os.File{file}
	if err := holds.Start(); err != nil {
		t.Skip(err)
	}
	defer holds.Wait()
	defer holds.Process.Kill()
	refused := fmt.Errorf("cannot listen: %w", unix.EADDRINUSE)
	for _, tt := range []struct {
		name  string
		addr  netip.Addr
		known bool
	}{
		{"the address", netip.MustParseAddr("127.0.0.1"), true},
		{"any address", netip.IPv4Unspecified(), true},
		{"not named", netip.Addr{}, true},
		{"another", netip.MustParseAddr("127.0.0.2"), false},
	} {
		err := f.Explain(&Listener{Proto: ipc.ProtoTCP, Addr: tt.addr, Port: port}, refused)
		want := fmt.Sprintf("in use by %q (pid %d, user ", "sleep", holds.Process.Pid)
		if !errors.Is(err, unix.EADDRINUSE) || strings.Contains(err.Error(), want) != tt.known {
			t.Errorf("%s: %v, want %s", tt.name, err, want)
		}
	}
	if err := f.Explain(&Listener{Proto: ipc.ProtoTCP, Port: port}, unix.EACCES); err != unix.EACCES {
		t.Errorf("another error: %v", err)
	}
	holds.Process.Kill()
	holds.Wait()
	// We have it ourselves, which is nothing to name.
	if err := f.Explain(&Listener{Proto: ipc.ProtoTCP, Port: port}, refused); !strings.Contains(err.Error(), "in use by a process of user ") {
		t.Errorf("ours: %v", err)
	}
}
