// SPDX-License-Identifier: Apache-2.0

package test

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// readPcap returns how many packets a capture holds; it has to be whole.
//
// Where a worker is writing, half a record may be seen: a write that crosses a page
// is not one step for readers. It is whole soon after.
func readPcap(t *testing.T, file string) int {
	t.Helper()
	var n int
	var err error
	if !eventually(5*time.Second, func() bool { n, err = countPcap(t, file); return err == io.EOF }) {
		t.Errorf("after %d packets: %v", n, err)
	}
	return n
}

func countPcap(t *testing.T, file string) (int, error) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if _, info, err := r.ReadPacketData(); err != nil {
			return n, err
		} else if info.CaptureLength != info.Length || info.Length > 1<<17 {
			t.Fatalf("packet %d: %+v", n, info)
		}
	}
}

// TestPcapWorkerReplaced: workers die, one of them in the middle of a record.
// The next goes on behind the last whole one.
func TestPcapWorkerReplaced(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "pcap")
	g := lab.Guest("-p", file)
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	for round := range 3 {
		if !eventually(10*time.Second, func() bool { s, _ := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "x"); return s == "x" }) {
			t.Fatalf("round %d: no connection\n%s", round, g.Proc.Output())
		}
		old := mustWorker(t, g)
		before := readPcap(t, file)
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(old, syscall.SIGSTOP)
		f.Write(make([]byte, 16+round*1000)) // a header of zeros and some of what it belongs to
		f.Close()
		_ = syscall.Kill(old, syscall.SIGKILL)
		if !eventually(10*time.Second, func() bool { w := g.Worker(); return w != 0 && w != old }) {
			t.Fatalf("round %d: no new worker\n%s", round, g.Proc.Output())
		}
		if !eventually(10*time.Second, func() bool { s, _ := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "y"); return s == "y" }) {
			t.Fatalf("round %d: no connection\n%s", round, g.Proc.Output())
		}
		if after := readPcap(t, file); after < before+6 {
			t.Errorf("round %d: %d packets, then %d", round, before, after)
		}
	}
	if out := g.Proc.Output(); strings.Contains(out, "packet capture") {
		t.Errorf("said:\n%s", out)
	}
}

// TestPcapNobodyReads: a FIFO that is open and not read takes what it holds, and
// the guest's traffic goes on.
func TestPcapNobodyReads(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	fifo := filepath.Join(openDir(t), "fifo")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	r, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := lab.Guest("-p", fifo)
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	text := strings.Repeat("x", 4<<20)
	if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", text); s != text {
		t.Fatalf("%d bytes came back, %v\n%s", len(s), err, g.Proc.Output())
	}
	if !eventually(5*time.Second, func() bool { return strings.Count(g.Proc.Output(), "frames are left out") == 1 }) {
		t.Errorf("not told once:\n%s", g.Proc.Output())
	}
	unix.Close(r)
	if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "still there"); s != "still there" {
		t.Fatalf("%q, %v", s, err)
	}
	if !eventually(5*time.Second, func() bool { return strings.Count(g.Proc.Output(), "packet capture ended: broken pipe") == 1 }) {
		t.Errorf("not told once:\n%s", g.Proc.Output())
	}
}

// TestFullDisk: log and capture on a full disk are told of, once each, and the
// command runs.
func TestFullDisk(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for option, want := range map[string]string{
		"--pcap":     "packet capture: no space left on device: goes on when there is room",
		"--log-file": `log file: lines are lost until there is room path=/dev/full error="no space left on device"`,
	} {
		st, p := pastaRun(t, lab.For(t), "", "-d", "--config-net", option, "/dev/full", "--",
			"sh", "-c", "ping -c 3 -i 0.1 192.0.2.9 && exit 7")
		if n := strings.Count(p.Output(), want); st != 7 || n != 1 {
			t.Errorf("%s: status %d, told %d times\n%s", option, st, n, p.Output())
		}
	}
}

// TestPcapSize ends the capture with a whole packet, and nothing else.
func TestPcapSize(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		name string
		args []string
		wrap []string
	}{
		{"--pcap-size", []string{"--pcap-size", "5000"}, nil},
		{"ulimit -f", nil, []string{"prlimit", "--fsize=5000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netlab.Have(t, "prlimit")
			file := filepath.Join(openDir(t), "pcap")
			g := lab.For(t).GuestWith(netlab.GuestSpec{Wrap: tt.wrap, Args: slices.Concat([]string{"--config-net", "-p", file}, tt.args)})
			g.Must("ping", "-c", "60", "-i", "0.01", "192.0.2.9")
			if !eventually(5*time.Second, func() bool { return strings.Count(g.Proc.Output(), "packet capture ended") == 1 }) {
				t.Errorf("not told once:\n%s", g.Proc.Output())
			}
			g.Must("ping", "-c", "1", "192.0.2.9")
			if st, err := os.Stat(file); err != nil || st.Size() > 5000 || st.Size() < 4000 {
				t.Errorf("%v, %v", st.Size(), err)
			}
			readPcap(t, file)
		})
	}
}

// TestSignalWhileStarting: start-up waits for the other end of a FIFO, in each
// place where it may; a signal ends it, also one to the process in the
// foreground of two, and nothing is left.
func TestSignalWhileStarting(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		name    string
		signal  syscall.Signal
		program string
		args    []string // FIFO and DIR stand for paths, PID for a process
		status  int
	}{
		{"capture of a command", syscall.SIGTERM, "pasta", []string{"--config-net", "-p", "FIFO", "--", "true"}, 0},
		{"interrupt", syscall.SIGINT, "pasta", []string{"--config-net", "-p", "FIFO", "--", "true"}, 130},
		{"PID file", syscall.SIGQUIT, "pasta", []string{"--config-net", "-P", "FIFO", "--", "true"}, 0},
		{"capture in the foreground", syscall.SIGTERM, "pasta", []string{"-f", "-p", "FIFO", "PID"}, 0},
		{"capture in the background", syscall.SIGTERM, "pasta", []string{"-p", "FIFO", "PID"}, 143},
		{"interrupt of what goes to the background", syscall.SIGINT, "pasta", []string{"-p", "FIFO", "PID"}, 130},
		{"passt", syscall.SIGTERM, "passt", []string{"-s", "DIR/socket", "-P", "FIFO"}, 143},
		{"passt in the foreground", syscall.SIGTERM, "passt", []string{"-f", "-s", "DIR/socket", "-P", "FIFO"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			dir := openDir(t)
			fifo := filepath.Join(dir, "fifo")
			if err := unix.Mkfifo(fifo, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(fifo, 0o666); err != nil {
				t.Fatal(err)
			}
			args := []string{filepath.Join(filepath.Dir(netlab.Pasta()), tt.program)}
			if tt.program == "pasta" {
				args = append(args, netlab.NoForward()...)
			}
			for _, a := range tt.args {
				if a == "PID" {
					a = strconv.Itoa(holder(t, lab))
				}
				args = append(args, strings.NewReplacer("FIFO", fifo, "DIR", dir).Replace(a))
			}
			p := lab.Host.Start(netlab.Spec{Args: args, User: netlab.Nobody, Timeout: 30 * time.Second})
			if !eventually(10*time.Second, func() bool { return strings.Contains(p.Output(), "waiting for somebody to read it") }) {
				t.Fatalf("not told:\n%s", p.Output())
			}
			all := append(netlab.Children(p.PID), p.PID)
			_ = p.Signal(tt.signal)
			st, ok := p.WaitFor(10 * time.Second)
			if !ok || st != tt.status {
				t.Errorf("ended: %v, status %d, want %d\n%s", ok, st, tt.status, p.Output())
			}
			for _, pid := range all {
				if !gone(pid, 10*time.Second) {
					t.Errorf("process %d of %v lives on", pid, all)
				}
			}
			if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 {
				t.Errorf("left are %q", left)
			}
		})
	}
}

// TestStartUpFails leaves no PID file and no socket behind.
func TestStartUpFails(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	dir := openDir(t)
	pid := filepath.Join(dir, "pid")
	// The socket comes after the PID file, and cannot be bound.
	p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Timeout: 20 * time.Second,
		Args: []string{filepath.Join(filepath.Dir(netlab.Pasta()), "passt"), "-f", "-P", pid, "-s", dir + "/none/socket"}})
	if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), "cannot bind socket") {
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
}

// TestDebugNamesFlows: with -d there is a line for each flow that begins and ends,
// either way, and for each that is refused, with the rule.
func TestDebugNamesFlows(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-d", "-t", "10001", "--deny", "tcp:any:9")
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
	go netlab.Echo(g.Listen("tcp", ":10001"))
	for _, ask := range []struct {
		ns            *netlab.NS
		network, addr string
	}{{g.NS, "tcp", "192.0.2.9:7"}, {g.NS, "udp", "192.0.2.9:7"}, {lab.Remote, "tcp", "192.0.2.2:10001"}} {
		if s, err := netlab.Ask(ask.ns, ask.network, ask.addr, "x"); s != "x" {
			t.Fatalf("%v: %q, %v", ask, s, err)
		}
	}
	if c, err := g.DialError("tcp", "192.0.2.9:9", time.Second); err == nil {
		c.Close()
		t.Error("not refused")
	}
	for _, want := range []string{
		`flow opened protocol=tcp direction=out from=[0-9.]+:\d+ to=192\.0\.2\.9:7 `,
		`flow closed protocol=tcp direction=out from=[0-9.]+:\d+ to=192\.0\.2\.9:7 ms=\d+ `,
		`flow opened protocol=udp direction=out from=[0-9.]+:\d+ to=192\.0\.2\.9:7 `,
		`flow opened protocol=tcp direction=in from=192\.0\.2\.9:\d+ `, `flow closed protocol=tcp direction=in from=192\.0\.2\.9:\d+ ms=`,
		`flow refused protocol=tcp direction=out from=[0-9.]+:\d+ to=192\.0\.2\.9:9 reason="egress rules"`,
		`refused by the egress rules protocol=tcp to=192\.0\.2\.9:9 rule=.*--deny tcp:any:9`,
	} {
		re := regexp.MustCompile(want)
		if !eventually(5*time.Second, func() bool { return re.MatchString(g.Proc.Output()) }) {
			t.Errorf("no %s in\n%s", want, g.Proc.Output())
		}
	}
}

// TestJournalLevels: standard error that leads to the journal gets levels.
func TestJournalLevels(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	dir := openDir(t)
	journal := filepath.Join(dir, "journal")
	if err := os.WriteFile(journal, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(journal, 0o666); err != nil {
		t.Fatal(err)
	}
	script := `exec 2>>"$1" && shift && export JOURNAL_STREAM="$(stat -L -c %d:%i /dev/stderr)" && exec "$@"`
	args := append(append([]string{"sh", "-c", script, "sh", journal, netlab.Pasta()}, netlab.NoForward()...), "--config-net", "-m", "67", "--", "/nonexistent")
	p := lab.Host.Start(netlab.Spec{Args: args, User: netlab.Nobody, Timeout: 20 * time.Second})
	st := p.Wait()
	b, err := os.ReadFile(journal)
	want := "<4>MTU 67 is too small for IPv4 (minimum 68)\n<4>MTU 67 is too small for IPv6 (minimum 1280)\n"
	if err != nil || st != 1 || !strings.HasPrefix(string(b), want) || !strings.Contains(string(b), "\n<3>failed to start /nonexistent") {
		t.Errorf("status %d, %v:\n%s", st, err, b)
	}
}

// TestLastWords: worker and agent that die by their runtime leave one line each,
// and the rest to -d.
func TestLastWords(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, debug := range []bool{false, true} {
		args := []string{"--config-net"}
		if debug {
			args = append(args, "-d")
		}
		g := lab.For(t).Guest(args...)
		for _, pid := range g.Processes() {
			if comm, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); strings.HasPrefix(string(comm), "aldente-") {
				_ = syscall.Kill(pid, syscall.SIGABRT)
			}
		}
		for _, want := range []string{`worker ended .*SIGABRT: abort`, `SIGABRT: abort component=agent`} {
			re := regexp.MustCompile(want)
			if !eventually(5*time.Second, func() bool { return re.MatchString(g.Proc.Output()) }) {
				t.Errorf("debug %v: no %s in\n%s", debug, want, g.Proc.Output())
			}
		}
		if !eventually(soonEnough, func() bool { return strings.Contains(g.Proc.Output(), "goroutine ") == debug }) {
			t.Errorf("debug %v: traceback or none:\n%s", debug, g.Proc.Output())
		}
		g.Close()
	}
}

// TestTrace has a line for each packet, either way.
func TestTrace(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--trace")
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "not in the log"); s != "not in the log" {
		t.Fatalf("%q, %v", s, err)
	}
	g.Must("ping", "-c", "40", "-i", "0.005", "192.0.2.9")
	for _, want := range []string{
		`from guest: tcp 192\.0\.2\.2:\d+ > 192\.0\.2\.9:7 syn seq \d+ window \d+ mss \d+ wscale \d+ length 0`,
		`to guest: tcp 192\.0\.2\.9:7 > 192\.0\.2\.2:\d+ syn,ack seq \d+ ack \d+ window \d+ `,
		`from guest: tcp .* psh,ack .* length 14`, `to guest: tcp .* length 14`,
		`from guest: arp request for 192\.0\.2\.`, `to guest: arp reply to 192\.0\.2\.2 `,
	} {
		re := regexp.MustCompile(want)
		if !eventually(5*time.Second, func() bool { return re.MatchString(g.Proc.Output()) }) {
			t.Errorf("no %s in\n%s", want, g.Proc.Output())
		}
	}
	requests := func() int {
		return strings.Count(g.Proc.Output(), "icmp 192.0.2.2 > 192.0.2.9 type 8 code 0 length 64")
	}
	eventually(5*time.Second, func() bool { return requests() >= 40 }) // the log comes after the packets
	if out := g.Proc.Output(); requests() != 40 || strings.Contains(out, "not in the log") {
		t.Errorf("%d of 40 echo requests, or contents:\n%s", requests(), out)
	}
}
