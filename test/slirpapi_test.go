// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// slirpEnv names another program to hold against the recorded answers.
const slirpEnv = "ALDENTE_SLIRP4NETNS"

// apiTurn is a request to the API, and its answer.
type apiTurn struct {
	request string
	theirs  string // of slirp4netns 1.3.3
	ours    string
}

const dies = "(dies)"

// exchanges is the recorded conversation.
func exchanges(t *testing.T) (all []apiTurn) {
	t.Helper()
	b, err := os.ReadFile("../broker/control/hostfwd/testdata/answers.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		kind, text, _ := strings.Cut(line, " ")
		switch last := len(all) - 1; kind {
		case ">":
			all = append(all, apiTurn{request: text})
		case "<":
			all[last].theirs, all[last].ours = text, text
		case "=":
			all[last].ours = text
		}
	}
	return all
}

// TestSlirpAPI: the whole conversation, byte for byte, and what it has made of the ports.
func TestSlirpAPI(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	s := startSlirp(t, lab, slirpSpec{Args: []string{"-c", "--disable-host-loopback"}})
	n := 0
	for _, e := range exchanges(t) {
		if got := s.ask(t, e.request); got != e.ours {
			t.Errorf("%s\ngot  %s\nwant %s", e.request, got, e.ours)
		}
		n++
	}
	if n < 40 {
		t.Errorf("only %d requests", n)
	}
	// Of those that are left: 8082 was removed by its number, 8080 of UDP as well.
	for addr, want := range map[string]string{"192.0.2.2:8090": "192.0.2.9"} {
		go namesClient(s.Listen("tcp", ":90"))
		if got := whom(lab.Remote, addr); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	if got := whom(lab.Remote, "192.0.2.2:8082"); got != "" {
		t.Errorf("a port that was removed: %s", got)
	}
}

// TestSlirpOriginal holds the recorded answers against another program, named by
// ALDENTE_SLIRP4NETNS.
func TestSlirpOriginal(t *testing.T) {
	binary := os.Getenv(slirpEnv)
	if binary == "" {
		t.Skip(slirpEnv + " names no program")
	}
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	start := func() *slirp {
		return startSlirp(t, lab, slirpSpec{Binary: binary, Args: []string{"-c"}, User: netlab.Root})
	}
	s := start()
	for _, e := range exchanges(t) {
		got := s.ask(t, e.request)
		if e.theirs == dies {
			if _, ok := s.proc.WaitFor(10 * time.Second); !ok || got != "" {
				t.Errorf("%s: answered %q, ended: %v", e.request, got, ok)
			}
			s = start()
		} else if got != e.theirs {
			t.Errorf("%s\ngot  %s\nwant %s", e.request, got, e.theirs)
		}
	}
}

// TestSlirpForwards: ports come and go while the instance runs, for both protocols, low ones
// as well where that is allowed, and connections stay.
func TestSlirpForwards(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.Sysctl("net/ipv4/ip_unprivileged_port_start", "80")
	s := startSlirp(t, lab, slirpSpec{Args: []string{"-c"}})
	s.IP("addr add 192.0.2.77/32 dev tap0")
	go namesClient(s.Listen("tcp", ":80"))
	go netlab.Echo(s.Listen("tcp", ":81"))
	go netlab.EchoUDP(s.ListenUDP("udp", ":82"))
	add := func(args string) (id string) {
		t.Helper()
		answer := s.ask(t, `{"execute": "add_hostfwd", "arguments": {`+args+`}}`)
		id, ok := strings.CutPrefix(strings.TrimSuffix(answer, "}}"), `{"return":{"id":`)
		if !ok {
			t.Fatalf("%s: %s", args, answer)
		}
		return id
	}
	remove := func(id string) {
		t.Helper()
		if answer := s.ask(t, `{"execute": "remove_hostfwd", "arguments": {"id": `+id+`}}`); answer != `{"return":{}}` {
			t.Errorf("%s: %s", id, answer)
		}
	}
	const at = netlab.Host4 + ":"
	web := add(`"proto": "tcp", "host_port": 80, "guest_port": 80`)
	local := add(`"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8081, "guest_addr": "10.0.2.100", "guest_port": 80`)
	elsewhere := add(`"proto": "tcp", "host_port": 8082, "guest_addr": "192.0.2.77", "guest_port": 80`)
	echo := add(`"proto": "tcp", "host_port": 8083, "guest_port": 81`)
	udp := add(`"proto": "udp", "host_port": 8082, "guest_port": 82`)
	for _, w := range []struct {
		from       *netlab.NS
		addr, want string
	}{
		{lab.Remote, at + "80", "192.0.2.9"}, {lab.Host, "127.0.0.1:80", "10.0.2.2"}, {lab.Host, "127.0.0.1:8081", "10.0.2.2"},
		{lab.Remote, at + "8081", ""}, {lab.Remote, at + "8082", "192.0.2.9"},
	} {
		if got := whom(w.from, w.addr); got != w.want {
			t.Errorf("%s sees %q, want %q", w.addr, got, w.want)
		}
	}
	for _, from := range []*netlab.NS{lab.Remote, lab.Host} {
		if got, err := netlab.Ask(from, "udp", at+"8082", "hello"); got != "hello" {
			t.Errorf("UDP: %q, %v", got, err)
		}
	}
	open := lab.Remote.Dial("tcp", at+"8083")
	defer open.Close()
	_ = open.SetDeadline(time.Now().Add(20 * time.Second))
	for _, id := range []string{web, local, elsewhere, echo, udp} {
		if _, err := io.WriteString(open, id); err != nil {
			t.Error(err)
		}
		b := make([]byte, len(id))
		if _, err := io.ReadFull(open, b); err != nil || string(b) != id {
			t.Errorf("an open connection says %q, %v", b, err)
		}
		remove(id)
	}
	for _, port := range []string{"80", "8082", "8083"} {
		if c, err := lab.Remote.DialError("tcp", at+port, time.Second); err == nil {
			t.Errorf("port %s is still there", port)
			c.Close()
		}
	}
	if got := s.ask(t, `{"execute": "list_hostfwd"}`); got != `{"entries":[]}` {
		t.Errorf("%s", got)
	}
}

// TestSlirpGuestAsks: a process of the guest's, though the same user's and with the same
// files, forwards nothing to itself.
func TestSlirpGuestAsks(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	s := startSlirp(t, lab, slirpSpec{Args: []string{"-c"}})
	const request = `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8080, "guest_port": 80}}`
	err := s.Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: s.api}); err != nil {
			return err
		}
		_, _ = unix.Write(fd, []byte(request))
		b := make([]byte, 99)
		if n, _ := unix.Read(fd, b); n > 0 {
			return fmt.Errorf("it is told %s", b[:n])
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if got := s.ask(t, `{"execute": "list_hostfwd"}`); got != `{"entries":[]}` {
		t.Errorf("%s", got)
	}
}
