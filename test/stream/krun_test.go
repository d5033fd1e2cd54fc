// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	"aldente/test/netlab"
	"aldente/test/stream/standin"
	"aldente/worker/packet"
)

// sockets are the types by which a monitor may pass frames on.
var sockets = []struct {
	name string
	typ  int
}{{"stream", unix.SOCK_STREAM}, {"dgram", unix.SOCK_DGRAM}, {"seqpacket", unix.SOCK_SEQPACKET}}

// given is a passt that was started with one end of a pair of sockets.
type given struct {
	cmd  *exec.Cmd
	done chan error
	ours *os.File // the other end
}

// giveOne starts passt on the lab's host in the foreground, with a socket as descriptor 7.
func giveOne(t *testing.T, lab *netlab.Lab, typ int, args ...string) *given {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[0]), "passt's")
	g := &given{ours: os.NewFile(uintptr(pair[1]), "ours"), done: make(chan error, 1)}
	g.cmd = giveCommand(t, theirs, slices.Concat([]string{"-f", "-q", "--fd", "7"}, args)...)
	var out strings.Builder
	g.cmd.Stderr = &out
	if err := lab.Host.Do(g.cmd.Start); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	ended := make(chan struct{})
	go func() { g.done <- g.cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		g.ours.Close()
		_ = g.cmd.Process.Kill()
		<-ended
		if t.Failed() && out.Len() > 0 {
			t.Logf("passt: %s", out.String())
		}
	})
	return g
}

// giveCommand is a passt as an unprivileged user, with a file as descriptor 7.
func giveCommand(t *testing.T, file *os.File, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(machine.Program(t), args...)
	cmd.ExtraFiles = make([]*os.File, 5)
	cmd.ExtraFiles[4] = file
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !netlab.Nested() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}
	}
	return cmd
}

// ends waits for passt's end, which is to be a good one.
func (g *given) ends(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case err := <-g.done:
		if err != nil {
			t.Errorf("passt ended: %v", err)
		}
		g.done <- err
	case <-time.After(within):
		t.Errorf("passt is still there after %v", within)
	}
}

// krunSize is how many bytes go each way: with make krun one GiB.
func krunSize() int64 {
	if n, err := strconv.ParseInt(os.Getenv("ALDENTE_KRUN"), 10, 32); err == nil {
		return n << 20
	}
	return 24 << 20
}

// TestKrun has a guest that leaves checksums and cutting to hardware behind a monitor
// that says nothing of it, as libkrun's: its frames are as long as IP allows, and
// their checksums are the pseudo-header's sum. All of it arrives, and the guest finds no
// wrong checksum.
func TestKrun(t *testing.T) {
	machine.NeedOurs(t)
	size := krunSize()
	for _, s := range sockets {
		t.Run(s.name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			p := giveOne(t, lab, s.typ, "-m", "1500")
			g := newGuest(t)
			g.attachBy(t, 1500, func() (*standin.Process, error) { return standin.StartKrun(p.ours, s.typ) })
			before := g.Counters()
			for _, f := range families {
				for _, down := range []bool{false, true} {
					addr := f.remote + ":5001"
					if err := netlab.Transfer(g.NS, lab.Remote, addr, addr, size, down, time.Minute+time.Duration(size>>20)*time.Second); err != nil {
						t.Errorf("%s, down=%v: %v", f.name, down, err)
					}
				}
			}
			go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
			for _, n := range []int{1, 1400, 9000, 60000} {
				text := strings.Repeat("d", n)
				if got, err := netlab.Ask(g.NS, "udp", "192.0.2.9:7", text); err != nil || got != text {
					t.Errorf("datagram of %d bytes: %d, %v", n, len(got), err)
				}
			}
			for k, v := range g.Since(before, "TcpInCsumErrors", "UdpInCsumErrors", "IpInHdrErrors", "Ip6InHdrErrors") {
				if v > 0 {
					t.Errorf("%s: %d", k, v)
				}
			}
			g.in.Kill()
			p.ours.Close()
			p.ends(t, 30*time.Second)
		})
	}
}

// framesOf is the other end of a socket on which frames come and go.
type framesOf struct {
	t    *testing.T
	fd   int
	typ  int
	rest []byte
}

func (f *framesOf) put(frame []byte) {
	f.t.Helper()
	if f.typ == unix.SOCK_STREAM {
		frame = prefixed(frame)
	}
	for len(frame) > 0 {
		n, err := unix.Write(f.fd, frame)
		if err != nil {
			f.t.Fatalf("%d bytes: %v", len(frame), err)
		}
		frame = frame[n:]
	}
}

// next is the next frame, nil after a while.
func (f *framesOf) next(wait time.Duration) []byte {
	f.t.Helper()
	buf := make([]byte, 1<<17)
	for deadline := time.Now().Add(wait); ; {
		if f.typ == unix.SOCK_STREAM && len(f.rest) >= 4 {
			if n := 4 + int(binary.BigEndian.Uint32(f.rest)); len(f.rest) >= n {
				frame := f.rest[4:n]
				f.rest = f.rest[n:]
				return frame
			}
		}
		p := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, max(int(time.Until(deadline).Milliseconds()), 0)); n == 0 && err == nil {
			return nil
		}
		n, err := unix.Read(f.fd, buf)
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			return nil
		case f.typ != unix.SOCK_STREAM:
			return buf[:n]
		default:
			f.rest = append(f.rest, buf[:n]...)
		}
	}
}

// TestKrunFrames sends frames by hand: datagrams that are longer than any MTU, up to the
// longest that there can be, with the pseudo-header's sum, are answered; one whose
// checksum is neither that nor right is not, and neither is what libkrun's client sends
// before the first frame.
func TestKrunFrames(t *testing.T) {
	machine.NeedOurs(t)
	for _, s := range sockets {
		t.Run(s.name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			got := make(chan int, 100)
			for _, at := range []string{"192.0.2.9:7", "[2001:db8:1::9]:7"} {
				c := lab.Remote.ListenUDP("udp", at)
				go func() {
					b := make([]byte, 1<<16)
					for {
						n, _, err := c.ReadFrom(b)
						if err != nil {
							return
						}
						got <- n
					}
				}()
			}
			p := giveOne(t, lab, s.typ, "-m", "1500")
			c := &framesOf{t: t, fd: int(p.ours.Fd()), typ: s.typ}
			if s.typ != unix.SOCK_STREAM {
				c.put([]byte("VFKT"))
				c.put(nil)
				c.put([]byte("VFKT!"))
			}
			c.put(arp())
			ends := []packet.Ends{
				{Src: addr(netlab.Host4), Dst: addr("192.0.2.9"), TTL: 64},
				{Src: addr(netlab.Host6), Dst: addr("2001:db8:1::9"), TTL: 64},
			}
			port := uint16(4000)
			for k := range ends {
				e := &ends[k]
				e.SrcMAC, e.DstMAC = packet.MAC(guestMAC), packet.Broadcast
				longest := 65507
				if k == 1 {
					longest = 65527
				}
				for _, n := range []int{0, 20000, 65494, longest} {
					frame := make([]byte, packet.MaxHeaders+n)
					var o packet.Offload
					port++
					frame = frame[:packet.PutUDP(frame, e, port, 7, n, &o)+n]
					c.put(frame)
					select {
					case m := <-got:
						if m != n {
							t.Errorf("%d bytes arrive as %d", n, m)
						}
					case <-time.After(20 * time.Second):
						t.Fatalf("%d bytes in a frame of %d do not arrive", n, len(frame))
					}
					frame[int(o.CsumStart)+6] ^= 1
					c.put(frame)
				}
			}
			select {
			case m := <-got:
				t.Errorf("a frame with a wrong checksum arrives: %d bytes", m)
			case <-time.After(300 * time.Millisecond):
			}
			c.put(arp())
			for answered := false; !answered; {
				frame := c.next(10 * time.Second)
				if frame == nil {
					t.Fatal("no answer any more")
				}
				answered = len(frame) >= 42 && binary.BigEndian.Uint16(frame[12:]) == 0x0806 && frame[21] == 2
			}
		})
	}
}

func addr(s string) packet.Addr {
	ip := net.ParseIP(s)
	if v4 := ip.To4(); v4 != nil {
		return packet.AddrFrom4([4]byte(v4))
	}
	return packet.Addr(ip)
}

// TestKrunCommandLines: passt as crun's krun, muvm and libkrun's examples start it.
func TestKrunCommandLines(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for name, tt := range map[string]struct {
		args  []string
		stays bool // in the foreground
	}{
		"crun":          {args: []string{"-t", "all", "-u", "all", "--no-dhcp-dns", "--no-map-gw", "--fd", "7"}},
		"crun nitro":    {args: []string{"-t", "all", "--no-map-gw", "--fd", "7"}},
		"muvm":          {args: []string{"-q", "-f", "--fd", "7"}, stays: true},
		"muvm, ports":   {args: []string{"-q", "-f", "--fd", "7", "-t", "4080-4080:80-80", "-u", "127.0.0.1/5053-5054:53-54"}, stays: true},
		"libkrun":       {args: []string{"-f", "--fd", "7"}, stays: true},
		"libkrun nitro": {args: []string{"-t", "all", "-f", "--fd", "7"}, stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			theirs, ours := os.NewFile(uintptr(pair[0]), "passt's"), os.NewFile(uintptr(pair[1]), "the monitor's")
			defer ours.Close()
			cmd := giveCommand(t, theirs, tt.args...)
			ended := make(chan error, 1)
			if err := lab.For(t).Host.Do(cmd.Start); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			go func() { ended <- cmd.Wait() }()
			if !tt.stays {
				select {
				case err := <-ended:
					if err != nil {
						t.Fatalf("not in the background: %v", err)
					}
				case <-time.After(time.Minute):
					t.Fatal("not in the background")
				}
			}
			c := &framesOf{t: t, fd: int(ours.Fd()), typ: unix.SOCK_STREAM}
			c.put(arp())
			for answered := false; !answered; {
				frame := c.next(20 * time.Second)
				if frame == nil {
					t.Fatal("no answer")
				}
				answered = binary.BigEndian.Uint16(frame[12:]) == 0x0806 && frame[21] == 2
			}
			ours.Close()
			if tt.stays {
				select {
				case err := <-ended:
					if err != nil {
						t.Errorf("ended: %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Error("it outlives its monitor")
				}
			}
		})
	}
}

// TestGivenEnds: who has the other end is found to be gone: at once where the kernel
// tells, else within some seconds.
func TestGivenEnds(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, s := range sockets {
		t.Run(s.name, func(t *testing.T) {
			p := giveOne(t, lab.For(t), s.typ)
			c := &framesOf{t: t, fd: int(p.ours.Fd()), typ: s.typ}
			c.put(arp())
			if c.next(20*time.Second) == nil {
				t.Fatal("no answer")
			}
			p.ours.Close()
			p.ends(t, 20*time.Second)
		})
	}
}
