// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

const (
	allTSO = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	allUSO = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// inNamespace moves the test to a new network namespace, for good: the thread,
// never unlocked, ends with the test's goroutine.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip(8) of iproute2")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no new network namespace:", err)
	}
}

// guestTap makes a tap with addresses and a neighbour for our end. offload is
// cut down to what the kernel takes.
func guestTap(t *testing.T, offload uint32) *tap {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no tap devices:", err)
	}
	var req [unix.IFNAMSIZ + 24]byte
	copy(req[:], "tap0")
	binary.NativeEndian.PutUint16(req[unix.IFNAMSIZ:], unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); e != 0 {
		t.Fatal("TUNSETIFF:", e)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(offload)); err != nil {
		if offload&allUSO != 0 {
			t.Skip("kernel without USO:", err)
		}
		t.Fatal("TUNSETOFFLOAD:", err)
	}
	e := testEnds(false)
	ip(t, fmt.Sprintf("link set tap0 address %v up", net.HardwareAddr(e.DstMAC[:])),
		"addr add 192.0.2.2/24 dev tap0", "addr add 2001:db8::2/64 dev tap0 nodad")
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		ip(t, fmt.Sprintf("neigh add %s lladdr %v dev tap0 nud permanent", a, net.HardwareAddr(e.SrcMAC[:])))
	}
	return NewTap(int32(fd), offload).(*tap)
}

// ip runs ip(8), once for each line, in the namespace of the test's thread.
func ip(t *testing.T, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if out, err := exec.Command("ip", strings.Fields(l)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", l, err, out)
		}
	}
}

// guestUDP is a socket in the namespace, on port 50000, connected to our end.
func guestUDP(t *testing.T, v6 bool) int {
	t.Helper()
	var local, remote unix.Sockaddr = &unix.SockaddrInet4{Port: 50000, Addr: testDst4.As4()},
		&unix.SockaddrInet4{Port: 40000, Addr: testSrc4.As4()}
	family := unix.AF_INET
	if v6 {
		local, remote = &unix.SockaddrInet6{Port: 50000, Addr: testDst6}, &unix.SockaddrInet6{Port: 40000, Addr: testSrc6}
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	if err := errors.Join(unix.Bind(fd, local), unix.Connect(fd, remote)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// nextUDP is the next UDP frame of port 40000 that the guest sends; its kernel
// sends others on its own.
func nextUDP(t *testing.T, link Link, b *Batch) *Frame {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, err := link.Receive(b); err != nil {
			t.Fatal(err)
		}
		for i := range b.Frames {
			var p packet.Packet
			f := &b.Frames[i]
			if p.Decode(f.Data) == nil && p.Proto == packet.ProtoUDP &&
				binary.BigEndian.Uint16(p.Payload()[2:]) == 40000 {
				return f
			}
		}
		unix.Poll([]unix.PollFd{{Fd: link.FD(), Events: unix.POLLIN}}, 100)
	}
	t.Fatal("nothing from the guest")
	return nil
}

func TestTapReceive(t *testing.T) {
	inNamespace(t)
	link := guestTap(t, allTSO|allUSO)
	defer link.Close()
	b := NewBatch()
	for _, v6 := range []bool{false, true} {
		fd, headers := guestUDP(t, v6), 42
		if v6 {
			headers = 62
		}
		data := random(1400)
		if _, err := unix.Write(fd, data); err != nil {
			t.Fatal(err)
		}
		f := nextUDP(t, link, b)
		if !bytes.Equal(f.Data[headers:], data) || f.Offload.GSOType != packet.GSONone {
			t.Errorf("v6=%v: %+v, %d bytes", v6, f.Offload, len(f.Data))
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1200); err != nil {
			t.Fatal(err)
		}
		data = random(50000)
		if _, err := unix.Write(fd, data); err != nil {
			t.Fatal(err)
		}
		f = nextUDP(t, link, b)
		o := f.Offload
		if !bytes.Equal(f.Data[headers:], data) || o.GSOType != packet.GSOUDPL4 || o.GSOSize != 1200 ||
			int(o.HdrLen) != headers || int(o.CsumStart) != headers-8 || o.Flags&packet.OffloadNeedsChecksum == 0 {
			t.Errorf("v6=%v: %+v, %d bytes", v6, o, len(f.Data))
		}
		// What the kernel describes so, the cutter understands.
		for i, frame := range cutAll(t, &super{o: o, headers: bytes.Clone(f.Data)}, 1500) {
			if !checksumValid(frame) {
				t.Errorf("v6=%v: segment %d", v6, i)
			}
		}
	}
	if c := link.Counters(); c.Malformed != 0 || c.Received < 4 {
		t.Errorf("%+v", *c)
	}
}

// Super-frames arrive as the same datagrams, whoever cuts them.
func TestTapSend(t *testing.T) {
	for _, offload := range []uint32{0, allTSO, allTSO | allUSO} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%#x/v6=%v", offload, v6), func(t *testing.T) {
				inNamespace(t)
				link := guestTap(t, offload)
				defer link.Close()
				fd := guestUDP(t, v6)
				reach(t, link, fd, v6)
				for _, n := range []int{1, 1200, 1201, 50000} {
					data := random(n)
					s := udpSuper(v6, data, 1200)
					if !link.Send(&s.o, s.headers, s.payload) {
						t.Fatalf("dropped: %+v", *link.Counters())
					}
					expectDatagrams(t, fd, data, 1200)
					// One datagram of the same bytes.
					s = udpSuper(v6, data, 1200)
					s.o.GSOType = packet.GSONone
					if !link.Send(&s.o, s.headers, s.payload) || link.Flush() != nil {
						t.Fatalf("dropped: %+v", *link.Counters())
					}
					expectDatagrams(t, fd, data, n)
				}
			})
		}
	}
}

// reach sends until something arrives: the kernel adds an IPv6 address's route
// from a work queue.
func reach(t *testing.T, link Link, fd int, v6 bool) {
	t.Helper()
	s := udpSuper(v6, []byte{0}, 1)
	s.o.GSOType = packet.GSONone
	for range 500 {
		link.Send(&s.o, s.headers, s.payload)
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10); n > 0 {
			for buf := make([]byte, 1); ; {
				time.Sleep(20 * time.Millisecond) // those sent before
				if n, _ := unix.Read(fd, buf); n <= 0 {
					return
				}
			}
		}
	}
	t.Fatal("nothing arrives")
}

func expectDatagrams(t *testing.T, fd int, data []byte, size int) {
	t.Helper()
	for len(data) > 0 {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		buf := make([]byte, 65536)
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if want := data[:min(size, len(data))]; !bytes.Equal(buf[:n], want) {
			t.Fatalf("datagram of %d bytes, expected %d", n, len(want))
		}
		data = data[n:]
	}
}

// TCP segments that the tap was not told to cut are seen by a packet socket as
// the cutter makes them.
func TestTapCutsTCP(t *testing.T) {
	inNamespace(t)
	link := guestTap(t, 0)
	defer link.Close()
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	dev, err := net.InterfaceByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	all := uint16(unix.ETH_P_ALL)
	sa := &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: dev.Index}
	if err := unix.Bind(raw, sa); err != nil {
		t.Fatal(err)
	}
	for _, v6 := range []bool{false, true} {
		s := tcpSuper(v6, packet.ACK|packet.PSH, 0, random(10000), 1400)
		if !link.Send(&s.o, s.headers, s.payload) {
			t.Fatalf("dropped: %+v", *link.Counters())
		}
		want := cutAll(t, s, 65520)
		buf := make([]byte, 65536)
		for len(want) > 0 {
			n, err := unix.Read(raw, buf)
			if err != nil {
				t.Fatalf("%d segments missing: %v", len(want), err)
			}
			if bytes.Equal(buf[:n], want[0]) {
				want = want[1:]
			}
		}
	}
}

func TestTapDownAndGone(t *testing.T) {
	inNamespace(t)
	link := guestTap(t, allTSO)
	defer link.Close()
	b := NewBatch()
	s := udpSuper(false, random(100), 1)
	s.o.GSOType = packet.GSONone
	ip(t, "link set tap0 down")
	if link.Send(&s.o, s.headers, s.payload) || link.Counters().Dropped != 1 {
		t.Errorf("interface down: %+v", *link.Counters())
	}
	if err := link.Flush(); err != nil || !link.CanSend() {
		t.Errorf("interface down: %v", err)
	}
	for range 20 {
		if more, err := link.Receive(b); err != nil || more && len(b.Frames) == 0 {
			t.Fatalf("interface down: more %v, %v", more, err)
		}
	}
	ip(t, "link set tap0 up")
	if !link.Send(&s.o, s.headers, s.payload) {
		t.Errorf("up again: %+v", *link.Counters())
	}
	ip(t, "link del tap0")
	if link.Send(&s.o, s.headers, s.payload) || link.CanSend() || !errors.Is(link.Flush(), ErrClosed) {
		t.Errorf("deleted: %+v", *link.Counters())
	}
	if _, err := link.Receive(b); !errors.Is(err, ErrClosed) {
		t.Errorf("deleted: %v", err)
	}
}

// Each frame reaches the device in one piece behind its header, whether it is copied
// together or not. What fills a short one is zero, whatever went before it.
func TestTapWhole(t *testing.T) {
	for name, plain := range map[string]bool{"with headers": false, "plain": true} {
		t.Run(name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[1])
			link := NewTap(int32(fds[0]), 0)
			if plain {
				link = NewPlainTap(int32(fds[0]), MaxFrame)
			}
			defer link.Close()
			sizes := []int{smallFrame - 1, minWire - 6, smallFrame, minWire - 5, smallFrame + 1, minWire - 1, 60000, minWire, minWire + 1}
			for _, size := range sizes {
				sendWhole(t, link, fds[1], size, plain)
			}
			if n, err := unix.Read(fds[1], make([]byte, tapSlot)); err == nil {
				t.Errorf("%d bytes more", n)
			}
		})
	}
}

// sendWhole sends a frame of size bytes, more than headers have, and reads it at fd.
func sendWhole(t *testing.T, link Link, fd, size int, plain bool) {
	t.Helper()
	const headers = 54
	data := bytes.Repeat([]byte{0xa5, 0x5a, 0xff}, size)
	var o packet.Offload
	var before []byte
	if !plain {
		o = packet.Offload{Flags: packet.OffloadNeedsChecksum, CsumStart: 34, CsumOffset: uint16(size % 17)}
		before = make([]byte, packet.OffloadSize)
		encodeOffload(before, &o)
	}
	if !link.Send(&o, data[:headers], data[headers:size]) {
		t.Fatalf("%d bytes are not taken", size)
	}
	got := make([]byte, tapSlot)
	n, err := unix.Read(fd, got)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(before, data[:size], make([]byte, max(0, minWire-size)))
	if !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes arrive as %d: %x, want %x", size, n, got[:min(n, 80)], want[:min(len(want), 80)])
	}
}

func TestTapGone(t *testing.T) {
	inNamespace(t)
	link := guestTap(t, allTSO)
	defer link.Close()
	ip(t, "link del tap0")
	if _, err := link.Receive(NewBatch()); !errors.Is(err, ErrClosed) {
		t.Errorf("deleted: %v", err)
	}
}
