// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPassed: what a manager says of sockets and the sockets themselves are looked at; what is
// for another process is left alone. A process of its own is told, by its number.
func TestPassed(t *testing.T) {
	if os.Getenv("SERVICE_TEST_PASSED") != "" {
		all, err := Passed([]int{3, 4})
		for i := range all {
			os.Stdout.WriteString(all[i].String() + " at " + all[i].Where() + "\n")
		}
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
		}
		for _, v := range variables {
			os.Stdout.WriteString(os.Getenv(v))
		}
		os.Exit(0)
	}
	dir := t.TempDir()
	file := func(c interface{ File() (*os.File, error) }, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	listen := func(mptcp bool) *os.File {
		var c net.ListenConfig
		c.SetMultipathTCP(mptcp)
		l, err := c.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return file(l.(*net.TCPListener), nil)
	}
	tcp, mptcp := listen(false), listen(true)
	udp := file(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	unixSocket := file(net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"}))
	abstract := file(net.ListenUnix("unix", &net.UnixAddr{Name: "@" + dir, Net: "unix"}))
	datagram := file(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "d"), Net: "unixgram"}))
	l, err := net.FileListener(tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connected, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	client := file(connected, err)
	plain, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	const ours = "LISTEN_PID=$$ LISTEN_FDS=1 "
	for name, tt := range map[string]struct {
		env   string // of a shell
		files []*os.File
		want  string
	}{
		"TCP":             {ours, []*os.File{tcp}, "socket 3 of the service manager at " + l.Addr().String() + "\n"},
		"two, with names": {"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b ", []*os.File{unixSocket, tcp}, `socket 3 of the service manager, "a" at ` + dir + "/s\n" + `socket 4 of the service manager, "b" at ` + l.Addr().String() + "\n"},
		"another process": {"LISTEN_PID=1 LISTEN_FDS=1 ", []*os.File{tcp}, "11"},
		"no process":      {"LISTEN_FDS=1 ", []*os.File{tcp}, "1"},
		"none":            {"LISTEN_PID=$$ LISTEN_FDS=0 ", nil, ""},
		"fewer":           {"LISTEN_PID=$$ LISTEN_FDS=3 ", []*os.File{tcp, tcp}, "socket 5 of the service manager is not open: LISTEN_FDS says that there are 3\n"},
		"a word":          {"LISTEN_PID=$$ LISTEN_FDS=x ", nil, "LISTEN_FDS is \"x\": a number of at most 4096 is needed\n"},
		"negative":        {"LISTEN_PID=$$ LISTEN_FDS=-1 ", nil, "LISTEN_FDS is \"-1\": a number of at most 4096 is needed\n"},
		"too many":        {"LISTEN_PID=$$ LISTEN_FDS=5000 ", nil, "LISTEN_FDS is \"5000\": a number of at most 4096 is needed\n"},
		"UDP":             {ours, []*os.File{udp}, "socket 3 of the service manager: neither a TCP socket that listens, for -t, nor a UNIX one, for -s\n"},
		// Its connections would be past rules for TCP.
		"MPTCP":     {ours, []*os.File{mptcp}, "socket 3 of the service manager: neither a TCP socket that listens, for -t, nor a UNIX one, for -s\n"},
		"connected": {ours, []*os.File{client}, "socket 3 of the service manager: neither a TCP socket that listens, for -t, nor a UNIX one, for -s\n"},
		"no socket": {ours, []*os.File{plain}, "socket 3 of the service manager: SO_DOMAIN: socket operation on non-socket; sockets are needed that listen\n"},
		"abstract":  {ours, []*os.File{abstract}, "socket 3 of the service manager: a UNIX socket with a path is needed\n"},
		"datagrams": {ours, []*os.File{datagram}, "socket 3 of the service manager: " + dir + "/d does not listen: a stream or seqpacket socket is needed that does\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c := exec.Command("sh", "-c", "export SERVICE_TEST_PASSED=1 "+tt.env+`; exec "$0" -test.run '^TestPassed$'`, os.Args[0])
			c.ExtraFiles = tt.files
			out, err := c.CombinedOutput()
			if string(out) != tt.want || err != nil {
				t.Errorf("got  %q, %v\nwant %q", out, err, tt.want)
			}
		})
	}
}

// TestManager: the manager is told once, and only who has named itself.
func TestManager(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for value, want := range map[string]string{path: "", "": "", "relative": "the path of a UNIX socket is needed", path + ".not": "no such file or directory (leave NOTIFY_SOCKET empty",
		"vsock:2:1234": "the path of a UNIX socket is needed", "/" + strings.Repeat("x", 300): "invalid argument"} {
		t.Setenv(notifySocket, value)
		m, err := Find()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", value, err, want)
		}
		if _, ok := os.LookupEnv(notifySocket); ok {
			t.Errorf("%q: the variable is still there", value)
		}
		for range 2 {
			if err := m.Ready(); err != nil {
				t.Errorf("%q: %v", value, err)
			}
		}
	}
	var b [64]byte
	n, err := l.Read(b[:])
	if string(b[:n]) != "READY=1" || err != nil {
		t.Errorf("told %q, %v", b[:n], err)
	}
	_ = l.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := l.Read(b[:]); err == nil {
		t.Errorf("told %q again", b[:n])
	}
}

// TestManagerDoesNotRead: whoever waits for us and does not read keeps nobody waiting for
// ever.
func TestManagerDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer func(d time.Duration) { patience = d }(patience)
	patience = 50 * time.Millisecond
	full, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	raw, err := full.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for unix.Send(int(fd), []byte("x"), unix.MSG_DONTWAIT) == nil {
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(notifySocket, path)
	m, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := m.Ready(); err == nil || time.Since(start) < patience/2 {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}
