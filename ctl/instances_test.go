// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/fuzz"
)

// TestNamesOfSockets: of the kernel's list those count that listen, whose names are
// status sockets' to the last byte; whoever makes sockets of odd names has no others
// left out.
func TestNamesOfSockets(t *testing.T) {
	table := "Num       RefCount Protocol Flags    Type St Inode Path\n" +
		"0000000097072671: 00000002 00000000 00010000 0001 01 64261018 @aldente/17353\n" +
		"0000000097072672: 00000002 00000000 00010000 0001 01 64261019 @aldente/17353\n" + // of another namespace's, or forged
		"0000000097072673: 00000003 00000000 00000000 0001 03 64261020 @aldente/17354\n" + // a client's
		"0000000097072674: 00000002 00000000 00010000 0001 01 64261021 @aldente/1-12\n" +
		"0000000097072675: 00000002 00000000 00010000 0001 01 64261022 @aldente/1-\n" +
		"0000000097072676: 00000002 00000000 00010000 0001 01 64261023 @aldente/../x\n" +
		"0000000097072677: 00000002 00000000 00010000 0001 01 64261024 aldente/7\n" +
		"0000000097072678: 00000002 00000000 00010000 0001 01 64261025 @aldente/1 2\n" +
		"0000000097072679: 00000002 00000000 00010000 0001 01 64261026 @aldente/5\x1b\n" +
		"000000009707267a: 00000002 00000000 0001zzzz 0001 01 64261027 @aldente/6\n" +
		"000000009707267b: 00000002 00000000 00010000 0001 01 64261028 @" + strings.Repeat("@aldente/8 ", 1000) + "\n" +
		"000000009707267c: 00000002 00000000 00010000 0001 01 64261029\n\n\xff\xfe\n" +
		"000000009707267d: 00000002 00000000 00010000 0001 01 64261030 @aldente/9"
	if got, want := names(strings.NewReader(table)), []string{"@aldente/17353", "@aldente/1-12", "@aldente/9"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	var many strings.Builder
	for n := range 3 * mostNames {
		fmt.Fprintf(&many, "0: 00000002 00000000 00010000 0001 01 1 @aldente/%d\n", n)
	}
	if n := len(names(strings.NewReader(many.String()))); n != mostNames {
		t.Errorf("%d names", n)
	}
}

// says is an instance that answers each client with what it is given, and then closes,
// unless there is nothing.
func says(t *testing.T, words string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
					_, _ = io.WriteString(c, words)
				}
			}()
		}
	}()
	return path
}

// TestHostileInstances: what takes an instance's place may say what it will: nothing of
// it reaches a terminal that is not text, and nothing is taken for an answer that is
// none.
func TestHostileInstances(t *testing.T) {
	esc := "\\u001b[31m\\u0007\\u009b2J\\u202e\\u2066\\t\\nlast\\u0000"
	good := fmt.Sprintf(`{"status":{"personality":"%s","guest":"%s","egress":"%s","addresses":["%s"],"search":["%s"],"started":"%s","last_death":"%s","control_path":"relative%s","limits":[{"name":"%s"}]}}`,
		esc, esc, esc, esc, esc, esc, esc, esc, esc) + "\n"
	for _, tt := range []struct {
		says, args string
		st         int
		want       string
	}{
		{good, "status", 0, "?[31m"},
		{good, "status --json", 0, `\u001b[31m`},
		{good, "log-level debug", 1, "changes nothing"},
		{"", "status", 1, "does not speak to this process"},
		{`{"error":"\u001b[2Jno\nway"}` + "\n", "status", 1, "?[2Jno"},
		{"{}\n", "status", 1, "something else"},
		{"[1]\n", "status", 1, "no answer of an instance"},
		{"\x1b]0;title\x07\n", "status", 1, "no answer of an instance"},
		{`{"status":{"pid":"x"}}` + "\n", "status", 1, "no answer of an instance"},
		{`{"status":`, "status", 1, "unexpected EOF"},
		{strings.Repeat("[", 100_000) + "\n", "status", 1, "no answer of an instance"},
	} {
		path := says(t, tt.says)
		st, out := ctl(append(strings.Fields(tt.args), "--socket", path)...)
		if st != tt.st || !strings.Contains(out, tt.want) {
			t.Errorf("%.60q, %s: status %d: %q, want %d, %q", tt.says, tt.args, st, out, tt.st, tt.want)
		}
		if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%.60q, %s: prints %q", tt.says, tt.args, out)
		}
		if strings.Contains(tt.args, "--json") {
			var s api.StatusReply
			if err := json.Unmarshal([]byte(out), &s); err != nil || !strings.HasPrefix(s.Guest, "\x1b[31m\a\u009b2J\u202e\u2066\t\nlast\x00") {
				t.Errorf("the value has changed: %q, %v", s.Guest, err)
			}
		}
	}
	if st, out := ctl("status", "--socket", filepath.Join(t.TempDir(), "none")); st != 1 || !strings.Contains(out, "no such file") {
		t.Errorf("no socket: status %d: %s", st, out)
	}
}

// TestSilentInstance: one that takes a connection and says nothing, or has no room for
// one, costs its time and no more.
func TestSilentInstance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := unix.Listen(int(fd.Fd()), 0); err != nil {
		t.Fatal(err)
	}
	s, err := connect(path, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.first(&api.Request{Command: api.Status}); err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("%v", err)
	}
	for _, wait := range []time.Duration{0, 100 * time.Millisecond} {
		if _, err := probe(path, wait); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("no room, after %v: %v", wait, err)
		}
	}
}

// TestReplies: a reply is a line, however it comes, and of a bounded length.
func TestReplies(t *testing.T) {
	r, w := net.Pipe()
	go func() {
		for _, part := range []string{`{"fl`, `ows":[{}`, `,{}]}` + "\n" + `{"flows":[{}]}` + "\n", `{"fl`} {
			_, _ = io.WriteString(w, part)
		}
		w.Close()
	}()
	in := bufio.NewReader(r)
	for _, n := range []int{2, 1} {
		if reply, err := readReply(in); err != nil || len(reply.Flows) != n {
			t.Fatalf("%+v, %v, want %d flows", reply, err, n)
		}
	}
	if _, err := readReply(in); err != io.ErrUnexpectedEOF {
		t.Errorf("half a line: %v", err)
	}
	if _, err := readReply(bufio.NewReader(io.LimitReader(endless{}, 2*api.MaxReply))); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a line without end: %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// FuzzReply: whatever an instance says is a reply or an error, and what is shown of it is
// text.
func FuzzReply(f *testing.F) {
	for _, s := range []string{"{}\n", `{"error":"no"}` + "\n", `{"status":{"guest":"\u001b[2J\u009b1m\u202e\ud83d\ude00\udb40\udc01","started":"2026-01-01T00:00:00Z","limits":[{"max":1}]}}` + "\n",
		`{"status":{"addresses":["192.0.2.2/24"],"mtu":-1}}` + "\n" + `{"flows":null}` + "\n", "[\n", "\n\n", "{\"status\":{}}", `{"status":{"egress":"` + "\xff\xc2" + `"}}` + "\n"} {
		fuzz.Add(f, []byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bufio.NewReader(bytes.NewReader(b))
		for {
			r, err := readReply(in)
			var out bytes.Buffer
			c := &call{command: &command{}, out: clean{&out}, raw: &out}
			if err != nil {
				fmt.Fprintln(c.out, err)
			} else if r.Status != nil {
				fmt.Fprint(c.out, statusText(r.Status))
				if err := c.json(r); err != nil {
					t.Errorf("%+v: %v", r, err)
				}
			}
			if i := bytes.IndexFunc(out.Bytes(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("prints %q", out.Bytes())
			}
			if err != nil {
				return
			}
		}
	})
}

// TestRedact: addresses go, what is none and what says nothing of anybody stays.
func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.2/24 and 192.0.2.2:80":                  "ipv4-1/24 and ipv4-1:80",
		"[2001:db8::1]:53, 2001:db8::1: refused":         "[ipv6-1]:53, ipv6-1: refused",
		"10.0.0.1 fd00::2/64 fe80::1%eth0":               "private-ipv4-1 private-ipv6-1/64 link-local-1%eth0",
		"127.0.0.1 ::1 0.0.0.0 169.254.1.1 ff02::1":      "127.0.0.1 ::1 0.0.0.0 169.254.1.1 ff02::1",
		"MAC 9a:55:9a:55:9a:55, at 12:34:56, 1:2 ::":     "MAC mac-1, at 12:34:56, 1:2 ::",
		"kernel 6.1.0-18, devel, 2026-11-29T14:00:00Z":   "kernel 6.1.0-18, devel, 2026-11-29T14:00:00Z",
		"host.corp.example 999.1.1.1 1.2.3":              "host.domain-1 999.1.1.1 1.2.3",
		"tcp:192.0.2.2:80 udp:fd00::1 9:b:10.0.0.1":      "tcp:ipv4-1:80 udp:private-ipv6-1 9:b:private-ipv4-1",
		"--deny 64:ff9b::/96 ::ffff:192.0.2.2 end: here": "--deny ipv6-1/96 ipv6-2 end: here",
	} {
		r := newRedactor()
		r.names = []string{"corp.example"}
		if got := r.text(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestAge: in two units.
func TestAge(t *testing.T) {
	for ago, want := range map[time.Duration]string{
		5 * time.Second: "5s", 125 * time.Second: "2m05s", 3*time.Hour + 7*time.Minute: "3h07m", 50 * time.Hour: "2d02h", -time.Hour: "0s",
	} {
		if got := age(time.Now().Add(-ago).Format(time.RFC3339Nano)); got != want {
			t.Errorf("%v: %s, want %s", ago, got, want)
		}
	}
	if got := age("\x1b"); got != "?" {
		t.Errorf("no time: %q", got)
	}
}
