// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// fromGuest has the guest's interface send a frame of its own making.
func fromGuest(t *testing.T, g *netlab.Guest, frame []byte) {
	t.Helper()
	name := g.Interface()
	if err := g.Do(func() error {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
	}); err != nil {
		t.Fatal(err)
	}
}

// wrong are frames that are dropped, and why.
func wrong(t *testing.T, f family) map[string][]byte {
	t.Helper()
	ether := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.NetworkLayer = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4(192, 0, 2, 2), DstIP: net.ParseIP(f.remote)}
	unserved := byte(23)
	if f.name == "IPv6" {
		ether.EthernetType, unserved = layers.EthernetTypeIPv6, 20
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("2001:db8:1::2"), DstIP: net.ParseIP(f.remote)}
	}
	udp := &layers.UDP{SrcPort: 5000, DstPort: 7}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		ether, ip.(gopacket.SerializableLayer), udp, gopacket.Payload("what is dropped is this")); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	damaged, other := slices.Clone(good), slices.Clone(good)
	damaged[len(damaged)-1]++
	other[unserved] = 132 // SCTP
	if f.name == "IPv4" {
		other[24], other[25] = 0, 0
		sum := uint32(0)
		for i := 14; i < 34; i += 2 {
			sum += uint32(other[i])<<8 | uint32(other[i+1])
		}
		sum = sum>>16 + sum&0xffff
		other[24], other[25] = ^byte(sum>>8), ^byte(sum)
	}
	return map[string][]byte{
		"dropped: wrong checksum":                                          damaged,
		"dropped: malformed: shorter than its headers say":                 good[:len(good)-8],
		"dropped: of a protocol or for an address that nobody here serves": other,
	}
}

// TestCaptureShows: what a guest does is seen while it does it, each frame that is
// dropped with the reason, each flow that is refused with the verdict, for both
// families. Other programs read it.
func TestCaptureShows(t *testing.T) {
	netlab.Have(t, "ping")
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "--deny", "tcp:192.0.2.9:81", "--deny", "udp:192.0.2.9:81",
		"--deny", "tcp:[2001:db8:1::9]:81", "--deny", "udp:[2001:db8:1::9]:81"}})
	all, drops, other := watch(t, lab, g), watch(t, lab, g, "--drops"), watch(t, lab, g, "udp", "and", "port", "9")
	for _, f := range families {
		serve(lab.Remote, strings.TrimSuffix(f.at(f.remote, ""), ":"), 7, 9)
		for what, want := range map[string]string{"tcp 7": open, "udp 7": open, "udp 9": open, "tcp 81": prohibited, "udp 81": prohibited, "tcp 82": refused} {
			proto, port, _ := strings.Cut(what, " ")
			if got := reach(g, proto+" "+f.at(f.remote, port)); got != want {
				t.Errorf("%s %s: %s, want %s", f.name, what, got, want)
			}
		}
		if got := reach(g, "icmp "+f.remote); got != open {
			t.Errorf("%s ping: %s", f.name, got)
		}
		for _, frame := range wrong(t, f) {
			fromGuest(t, g, frame)
		}
		// Handled in order: with the answer to this one, all of them are.
		if got := reach(g, "udp "+f.at(f.remote, "7")); got != open {
			t.Errorf("%s: %s", f.name, got)
		}
	}
	frames, dropped, others := all.end(), drops.end(), other.end()
	ofFamily := func(all []caught, f family) (of []caught) {
		typ := layers.EthernetTypeIPv4
		if f.name == "IPv6" {
			typ = layers.EthernetTypeIPv6
		}
		for _, c := range all {
			if e, ok := c.LinkLayer().(*layers.Ethernet); ok && e.EthernetType == typ {
				of = append(of, c)
			}
		}
		return of
	}
	for _, f := range families {
		icmp := map[string]gopacket.LayerType{"IPv4": layers.LayerTypeICMPv4, "IPv6": layers.LayerTypeICMPv6}[f.name]
		mine := ofFamily(frames, f)
		for _, way := range []bool{true, false} {
			for _, l := range []gopacket.LayerType{layers.LayerTypeTCP, layers.LayerTypeUDP, icmp} {
				if !has(mine, way, l, "") {
					t.Errorf("%s: no frame of %v without a comment, outbound %v", f.name, l, way)
				}
			}
		}
		for _, shown := range [][]caught{mine, ofFamily(dropped, f)} {
			for why := range wrong(t, f) {
				if !slices.ContainsFunc(shown, func(c caught) bool { return c.outbound && c.comment == why }) {
					t.Errorf("%s: no frame with %q", f.name, why)
				}
			}
			if !has(shown, false, icmp, "refused by the egress rules") {
				t.Errorf("%s: no verdict of the egress rules", f.name)
			}
			if !has(shown, false, layers.LayerTypeTCP, "the socket outside: connection refused") {
				t.Errorf("%s: no refusal by the remote", f.name)
			}
		}
		n := 0
		for _, c := range ofFamily(others, f) {
			if u, ok := c.Layer(layers.LayerTypeUDP).(*layers.UDP); !ok || u.SrcPort != 9 && u.DstPort != 9 {
				t.Errorf("%s: the filter shows %v", f.name, c)
			}
			n++
		}
		if n != 2 {
			t.Errorf("%s: the filter shows %d frames, want 2", f.name, n)
		}
	}
	for _, c := range dropped {
		if c.comment == "" {
			t.Errorf("of drops: %v", c)
		}
	}
	if t.Failed() {
		for _, c := range frames {
			t.Logf("outbound %v %q %v", c.outbound, c.comment, c.Packet)
		}
	}
	readByOthers(t, lab, all.file, g.Interface())
}

// readByOthers has tcpdump and tshark read a file, as far as they are there: of an
// interface with that name.
func readByOthers(t *testing.T, lab *netlab.Lab, file, name string) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy.pcapng")
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(copied, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("tcpdump"); err == nil {
		cmd := []string{"tcpdump", "-Z", "root", "-n", "-r", copied}
		if netlab.Nested() {
			cmd = []string{"unshare", "-U", "--map-user=1000", "tcpdump", "-n", "-r", copied}
		}
		if out := lab.Host.Must(cmd...); !strings.Contains(out, "Flags [S]") || !strings.Contains(out, "echo request") {
			t.Errorf("tcpdump shows\n%s", out)
		}
	}
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Log("no tshark: left out")
		return
	}
	out := lab.Host.Must("tshark", "-r", copied, "-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment")
	for _, want := range []string{"\trefused by the egress rules", "\tdropped: wrong checksum"} {
		if want = name + want; !strings.Contains(out, want) {
			t.Errorf("tshark shows no %q:\n%s", want, out)
		}
	}
}

// TestCaptureJSON: a line for each frame, and an end after as many as were asked for.
func TestCaptureJSON(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{filepath.Join(netlab.Stage(), "aldentectl"), "capture",
		"--pid", strconv.Itoa(g.Proc.PID), "--json", "--count", "3", "--snap", "20", "tcp", "host", "192.0.2.9"}})
	for !p.Exited() {
		if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "x"); s != "x" {
			t.Fatalf("%q, %v", s, err)
		}
	}
	lines := strings.Split(strings.TrimSuffix(p.Stdout(), "\n"), "\n")
	if p.Wait() != 0 || len(lines) != 3 || !strings.Contains(p.Output(), "3 frames captured, 0 left out") {
		t.Fatalf("%s", p.Output())
	}
	for _, l := range lines {
		if !strings.HasPrefix(l, `{"time":"2`) || !strings.Contains(l, `"direction":"`) || !strings.HasSuffix(l, `"}`) || len(l)-strings.Index(l, `"bytes":"`) != len(`"bytes":""}`)+40 {
			t.Errorf("%s", l)
		}
	}
}

// TestCaptureStalls: a client that does not read holds up nothing and takes no memory.
// What it has missed it is told.
func TestCaptureStalls(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	w := watch(t, lab, g)
	transfer := func() {
		t.Helper()
		if err := netlab.Transfer(g.NS, lab.Remote, "192.0.2.9:9000", "192.0.2.9:9000", 64<<20, true, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.proc.Signal(syscall.SIGSTOP)
	transfer()
	before := vitals(t, mustWorker(t, g))
	for range 3 {
		transfer()
	}
	after := vitals(t, mustWorker(t, g))
	if after.rss > before.rss+2<<10 || after.fds > before.fds+8 { // connections that are ending
		t.Errorf("the worker has %d KiB and %d descriptors, %d and %d before", after.rss, after.fds, before.rss, before.fds)
	}
	_ = w.proc.Signal(syscall.SIGCONT)
	if !eventually(10*time.Second, func() bool {
		s, _ := netlab.Ask(g.NS, "tcp", "192.0.2.9:9", "?")
		all, _ := w.written()
		return s == "" && all > 1<<20
	}) {
		t.Error("it does not go on")
	}
	w.end()
	all, last := w.frames()
	lost := uint64(0)
	for _, c := range all {
		lost += c.lost
	}
	if last == nil || last.PacketsDropped < 1000 || lost == 0 || last.PacketsDropped < lost || last.PacketsReceived != uint64(len(all))+last.PacketsDropped {
		t.Errorf("%d frames, %d left out, %+v", len(all), lost, last)
	}
}

// TestCaptureEnds: by the worker's end, with what to do about it, and by the instance's,
// which is no error.
func TestCaptureEnds(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	if st, out := ask(lab, lab.For(t).Guest("--splice-only"), "capture", "--json"); st != 1 || !strings.Contains(out, "there is no link") {
		t.Errorf("without a link: status %d: %s", st, out)
	}
	g := lab.Guest()
	w := watch(t, lab, g)
	if err := syscall.Kill(mustWorker(t, g), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := w.proc.Wait(); st != 1 || !strings.Contains(w.proc.Output(), "worker has ended") {
		t.Errorf("status %d\n%s", st, w.proc.Output())
	}
	var again *watched
	for tries := 0; again == nil; tries++ { // the next worker may not be ready yet
		p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{filepath.Join(netlab.Stage(), "aldentectl"), "capture", "--pid", strconv.Itoa(g.Proc.PID), "--count", "1"}})
		_, _ = netlab.Ask(g.NS, "udp", "192.0.2.9:9", "?")
		if st, ok := p.WaitFor(time.Second); ok && st == 0 {
			again = watch(t, lab, g)
		} else if p.Kill(); tries > 50 {
			t.Fatalf("no capture by the next worker\n%s", p.Output())
		}
	}
	g.Close()
	if st := again.proc.Wait(); st != 0 {
		t.Errorf("the instance has ended: status %d\n%s", st, again.proc.Output())
	}
}

// TestCaptureHostile: clients that keep what they were given, close at once, ask for as
// many captures as they can, and do to the pipe what they may. They get no more than four,
// nothing is left of them, and the guest hears nothing of it.
func TestCaptureHostile(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net"}, User: netlab.Root})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	text := strings.Repeat("x", 1<<20)
	works := func(when string) {
		t.Helper()
		if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", text); s != text {
			t.Fatalf("%s: %d bytes came back, %v\n%s", when, len(s), err, g.Proc.Output())
		}
	}
	// Where there are as many clients as may be, one is told so and closed, whatever it
	// is about to say.
	full := func(err error) bool {
		return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF)
	}
	client := func(words string, fds ...int) *net.UnixConn {
		var conn net.Conn
		if !eventually(10*time.Second, func() bool {
			var err error
			if conn, err = lab.Host.DialError("unix", fmt.Sprintf("@aldente/%d", g.Proc.PID), time.Second); err != nil && !errors.Is(err, unix.EAGAIN) {
				t.Fatal(err)
			}
			return err == nil
		}) {
			t.Fatal("the backlog stays full")
		}
		c := conn.(*net.UnixConn)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, _, err := c.WriteMsgUnix([]byte(words+"\n"), unix.UnixRights(fds...), nil); err != nil && !full(err) {
			t.Fatal(err)
		}
		return c
	}
	const ask = `{"version":1,"command":"capture"}`
	begin := func() (*net.UnixConn, int, string) {
		c := client(ask)
		line, oob := make([]byte, 1000), make([]byte, 1000)
		n, oobn, _, _, err := c.ReadMsgUnix(line, oob)
		if err != nil && !full(err) {
			t.Fatal(err)
		}
		if m, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(m) == 1 {
			if got, err := unix.ParseUnixRights(&m[0]); err == nil && len(got) == 1 {
				return c, got[0], string(line[:n])
			}
		}
		return c, -1, string(line[:n])
	}
	// Once, so that memory is there.
	for range 4 {
		c, fd, _ := begin()
		defer c.Close()
		defer unix.Close(fd)
	}
	works("with four that nobody reads")
	c, fd, said := begin()
	if fd >= 0 || !strings.Contains(said, "4 captures are going on") {
		t.Errorf("one more: %q", said)
	}
	c.Close()

	g2 := lab.For(t).GuestWith(netlab.GuestSpec{Args: []string{"--config-net"}, User: netlab.Root})
	g = g2
	before := map[int]vital{}
	for _, p := range g.Processes() {
		before[p] = vitals(t, p)
	}
	file, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil { // it blocks
		t.Fatal(err)
	}
	defer func() { unix.Close(p[0]); unix.Close(p[1]) }()
	for range 25 {
		for _, fds := range [][]int{{int(file.Fd())}, {int(dir.Fd())}, {p[1]}, {p[0], p[1], p[0]}} {
			client(ask, fds...).Close() // at once
		}
	}
	works("after a hundred that have closed at once")
	if n, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETFL, 0); err != nil || n&unix.O_NONBLOCK != 0 {
		t.Errorf("flags of a client's own pipe: %#x, %v", n, err)
	}
	if n, err := unix.IoctlGetInt(p[0], unix.TIOCINQ); err != nil || n != 0 {
		t.Errorf("a client's own pipe has %d bytes, %v", n, err)
	}
	for round := range 25 {
		var c *net.UnixConn
		var fd int
		if !eventually(10*time.Second, func() bool {
			var said string
			if c, fd, said = begin(); fd < 0 {
				c.Close()
				if said != "" && !strings.Contains(said, "captures are going on") && !strings.Contains(said, "clients are being served") {
					t.Fatal(said)
				}
			}
			return fd >= 0
		}) {
			t.Fatalf("round %d: no capture any more", round)
		}
		switch round % 5 {
		case 0: // keeps the pipe, and says that it is done
			_ = c.CloseWrite()
			_, _ = bufio.NewReader(c).ReadByte()
		case 1: // as small as can be
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 4096)
		case 2: // writes to it itself
			if w, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
				_, _ = unix.Write(w, []byte("garbage"))
				defer unix.Close(w)
			}
		case 3: // its end blocks
			if err := unix.SetNonblock(fd, false); err != nil {
				t.Fatal(err)
			}
		}
		works(fmt.Sprint("in round ", round))
		if _, err := unix.Write(fd, []byte("x")); !errors.Is(err, unix.EBADF) {
			t.Errorf("the pipe can be written: %v", err)
		}
		c.Close()
		if round%2 == 0 {
			unix.Close(fd)
		} else {
			defer unix.Close(fd)
		}
	}
	works("in the end")
	if !eventually(10*time.Second, func() bool {
		works("then") // what ends captures of which nobody reads the pipe
		for p, was := range before {
			if vitals(t, p).fds > was.fds+4 { // what was read of a capture that was told to end
				return false
			}
		}
		return true
	}) {
		for p, was := range before {
			t.Errorf("process %d: %+v, before %+v", p, vitals(t, p), was)
		}
	}
}
