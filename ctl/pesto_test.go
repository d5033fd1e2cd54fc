// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/control/wire"
	"aldente/ipc"
)

const pastaCaps = wire.CapIPv4 | wire.CapIPv6 | wire.CapTCP | wire.CapUDP | wire.CapScan | wire.CapInterfaces

// instance is what a client finds at a socket.
type instance struct {
	hello  []byte
	answer []byte // nil: it closes, as passt's does
}

func tables(caps wire.Caps, host []cli.Rule, splice []cli.Rule) []wire.Table {
	t := []wire.Table{{ID: wire.Host, Name: "HOST", Caps: caps, Rules: host}}
	if caps&wire.CapScan != 0 {
		t = append(t, wire.Table{ID: wire.Splice, Name: "SPLICE", Caps: caps, Rules: splice})
	}
	return t
}

// serve has one client, and returns what it sends.
func serve(t *testing.T, in instance) (path string, sent <-chan []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if in.hello == nil {
			return
		}
		_, _ = c.Write(in.hello)
		b, _ := io.ReadAll(c)
		_, _ = c.Write(in.answer)
		got <- b
	}()
	return path, got
}

func spec(t *testing.T, proto uint8, outbound bool, s string) []cli.Rule {
	t.Helper()
	rules, err := cli.ParseSpec(s, cli.SpecOptions{Proto: proto, Outbound: outbound, Auto: true, Ephemeral: cli.EphemeralPorts(cli.PortRangeFile)})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// TestClient: what is sent, printed and returned for each operation, in the words of
// passt's own client where it has some.
func TestClient(t *testing.T) {
	tcp := func(s string) []cli.Rule { return spec(t, ipc.ProtoTCP, false, s) }
	udp := func(s string) []cli.Rule { return spec(t, ipc.ProtoUDP, false, s) }
	ns := func(s string) []cli.Rule { return spec(t, ipc.ProtoTCP, true, s) }
	rules := func(all ...[]cli.Rule) []cli.Rule { return slices.Concat(all...) }
	now := rules(tcp("80"), udp("127.0.0.1/53"))
	const shown = "  HOST\n    TCP [*]:80  =>  80 \n    UDP [127.0.0.1]:53  =>  53 \n  SPLICE\n    TCP [*]%lo:90  =>  90 \n"
	for _, tt := range []struct {
		args       string
		host, lead []cli.Rule // that are sent
		out        string
		err        string
	}{
		{args: "", out: "passt/pasta configuration (PATH)\n" + shown},
		{args: "-s", out: "passt/pasta configuration (PATH)\n" + shown},
		{args: "-A -t 81", host: rules(now, tcp("81")), lead: ns("90")},
		{args: "-A -t 80", host: now, lead: ns("90")}, // is there
		{args: "-A", host: now, lead: ns("90")},
		{args: "--add --tcp-ports=0.0.0.0/8080:80 -u [::]/53", host: rules(now, tcp("0.0.0.0/8080:80"), udp("::/53")), lead: ns("90")},
		{args: "-At81", host: rules(now, tcp("81")), lead: ns("90")},
		{args: "-D -t 80", host: udp("127.0.0.1/53"), lead: ns("90")},
		{args: "--del -u 127.0.0.1/53 -T 90", host: tcp("80")},
		{args: "-t 81", host: tcp("81"), lead: ns("90")},
		{args: "-t 81 -t 82 -u 83 -D -t 82", host: rules(tcp("81"), udp("83")), lead: ns("90")},
		{args: "-t none", lead: ns("90")},
		{args: "-t none -T none"},
		{args: "-T 91", host: now, lead: ns("91")},
		{args: "-C HOST -A -t 99", host: tcp("99"), lead: ns("90")},
		{args: "-C SPLICE", host: now},
		{args: "-A -t 81 -C HOST -A -T 91 -t 82 -D -T 90", host: tcp("82"), lead: ns("91")},
		{args: "-t auto", host: tcp("auto"), lead: ns("90")},
		{args: "-s -C HOST", lead: ns("90"),
			out: "Previous configuration (PATH)\n" + shown + "Updated configuration (PATH)\n  HOST\n  SPLICE\n    TCP [*]%lo:90  =>  90 \n"},
		{args: "-A -t 80-81", err: "Forwarding configuration conflict: TCP [*]:80-81  =>  80-81 versus TCP [*]:80  =>  80\nUnable to add rule TCP [*]:80-81  =>  80-81"},
		{args: "-D -t 81", err: "Couldn't find forwarding rule to delete: TCP [*]:81  =>  81 \nUnable to delete rule TCP [*]:81  =>  81"},
		{args: "-D -t 80:81", err: "Couldn't find"},
		{args: "-A -t none", err: "-t none conflicts with previous options"},
		{args: "-C host", err: "Unsupported pif name host"},
		{args: "-A -t 70000", err: "Invalid port specifier '70000'"},
		{args: "-A -T 127.0.0.1/80", err: "not allowed for outbound rule"},
		{args: "--bogus", err: "pesto: unrecognized option '--bogus'\nTry 'pesto --help'"},
		{args: "-x", err: "pesto: invalid option -- 'x'"},
		{args: "--tcp", err: "option '--tcp' is ambiguous"},
		{args: "--show=1", err: "option '--show' doesn't allow an argument"},
	} {
		path, sent := serve(t, instance{wire.AppendHello(nil, tables(pastaCaps, now, ns("90"))), wire.AppendAnswer(nil, nil)})
		for _, order := range []bool{false, true} { // PATH last, and first
			if order && (tt.args == "" || tt.err != "") {
				continue
			}
			if order {
				path, sent = serve(t, instance{wire.AppendHello(nil, tables(pastaCaps, now, ns("90"))), nil})
			}
			argv := append([]string{"pesto"}, append(strings.Fields(tt.args), path)...)
			if order {
				argv = append([]string{"pesto", path}, strings.Fields(tt.args)...)
			}
			var out, errs bytes.Buffer
			st := run(argv, &out, &errs)
			if got := strings.ReplaceAll(out.String(), path, "PATH"); tt.err == "" && got != tt.out {
				t.Errorf("pesto %s prints\n%s, want\n%s", tt.args, got, tt.out)
			}
			if (st == 0) != (tt.err == "") || !strings.Contains(errs.String(), tt.err) || tt.err == "" && errs.Len() > 0 {
				t.Errorf("pesto %s: status %d: %s, want %q", tt.args, st, errs.String(), tt.err)
			}
			if tt.err != "" {
				continue
			}
			want := []byte(nil)
			if tt.args != "" && tt.args != "-s" {
				want = wire.AppendTables(nil, tables(pastaCaps, tt.host, tt.lead))
			}
			if got := <-sent; !bytes.Equal(got, want) {
				t.Errorf("pesto %s sends\n%x, want\n%x", tt.args, got, want)
			}
		}
	}
}

// TestInstances: what instances may say and have, and what becomes of it.
func TestInstances(t *testing.T) {
	many := func(n int) (rules []cli.Rule) {
		for i := range n {
			rules = append(rules, spec(t, ipc.ProtoTCP, false, "127.0.0.1/"+string(rune('1'+i/1000))+string(rune('0'+i/100%10))+string(rune('0'+i/10%10))+string(rune('0'+i%10)))...)
		}
		return rules
	}
	hello := func(caps wire.Caps, host ...cli.Rule) []byte { return wire.AppendHello(nil, tables(caps, host, nil)) }
	done := wire.AppendAnswer(nil, nil)
	evil := cli.Rule{Proto: ipc.ProtoTCP, Interface: "\x1b[2Jx\n", PortRange: cli.PortRange{First: 1, Last: 1}, TargetPort: 1}
	for _, tt := range []struct {
		name, args string
		in         instance
		st         int
		text       string
	}{
		{"refuses", "-A -t 80", instance{hello(pastaCaps), wire.AppendAnswer(nil, errors.New("port 80 is taken"))}, 1, "port 80 is taken"},
		{"refuses, and more", "-A -t 80", instance{hello(pastaCaps), wire.AppendAnswer(nil, errors.New("\x1b[31mred\nline"))}, 1, "?[31mred?line"},
		{"says nothing", "-A -t 80", instance{hello(pastaCaps), nil}, 0, ""},
		{"says half of it", "-A -t 80", instance{hello(pastaCaps), done[:5]}, 1, "unexpected EOF"},
		{"says something else", "-A -t 80", instance{hello(pastaCaps), bytes.Repeat([]byte{7}, 64)}, 1, "malformed"},
		{"does not speak", "-A -t 80", instance{nil, nil}, 1, "does not speak to this process"},
		{"is none", "-A -t 80", instance{[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), nil}, 1, "malformed"},
		{"shows what moves a cursor", "", instance{hello(pastaCaps, evil), nil}, 0, "%?[2Jx?"},
		{"is passt", "-A -T 80", instance{hello(pastaCaps &^ wire.CapScan), done}, 1, "Can't use -T, no outbound interface"},
		{"is passt, auto", "-A -t auto", instance{hello(pastaCaps &^ wire.CapScan), done}, 1, "'auto' port forwarding is only allowed for pasta"},
		{"has no IPv6", "-s -t 80", instance{hello(pastaCaps &^ wire.CapIPv6), done}, 0, "TCP [0.0.0.0]:80"},
		{"has no IPv6, an address", "-t ::1/80", instance{hello(pastaCaps &^ wire.CapIPv6), done}, 1, "IPv6 not enabled"},
		{"has no UDP", "-A -u 80", instance{hello(pastaCaps &^ wire.CapUDP), done}, 1, "disabled"},
		{"has many", "-A -t 80", instance{hello(pastaCaps, many(300)...), done}, 0, ""},
		{"has many and says nothing", "-A -t 80", instance{hello(pastaCaps, many(300)...), nil}, 1, "more than 255 rules"},
	} {
		path, _ := serve(t, tt.in)
		var out, errs bytes.Buffer
		st := run(append([]string{"pesto"}, append(strings.Fields(tt.args), path)...), &out, &errs)
		text := out.String() + errs.String()
		if st != tt.st || !strings.Contains(text, tt.text) || tt.text == "" && text != "" || strings.ContainsRune(text, 0x1b) {
			t.Errorf("%s: status %d: %q, want %d, %q", tt.name, st, text, tt.st, tt.text)
		}
	}
	var out, errs bytes.Buffer
	if st := run([]string{"pesto", filepath.Join(t.TempDir(), "none")}, &out, &errs); st != 1 || !strings.HasPrefix(errs.String(), "Failed to connect to ") {
		t.Errorf("no socket: status %d: %s", st, errs.String())
	}
}

// TestNames: which program it is by which name, and the texts of both.
func TestNames(t *testing.T) {
	for _, tt := range []struct {
		args string
		st   int
		text string
	}{
		{"pesto", 1, "Usage: pesto [OPTION]... PATH"}, {"pesto a b", 1, "Usage: pesto"}, {"/usr/bin/pesto -h", 0, "Usage: /usr/bin/pesto"},
		{"pesto --version x", 0, "pesto devel (aldente)"}, {"aldentectl", 1, "Usage: aldentectl COMMAND"}, {"aldentectl --help", 0, "pesto [OPTION]"},
		{"aldentectl --version", 0, "aldentectl devel"}, {"aldentectl pesto --help", 0, "Usage: pesto"}, {"aldentectl nothing", 1, "no command 'nothing'"},
	} {
		var out, errs bytes.Buffer
		if st := run(strings.Fields(tt.args), &out, &errs); st != tt.st || !strings.Contains(out.String()+errs.String(), tt.text) || (st == 0) != (errs.Len() == 0) {
			t.Errorf("%s: status %d: %s%s", tt.args, st, out.String(), errs.String())
		}
	}
	for line := range strings.Lines(pestoUsage("pesto")) {
		if len(line) > 80+len("\n") {
			t.Errorf("a long line: %s", line)
		}
	}
}

// TestManual: the manual page and the completions have the options that there are.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../man/pesto.1")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, o := range options {
		item := ".It "
		if o.short != 0 {
			item += "Fl " + string(o.short) + " , "
		}
		item += "Fl Fl " + o.long
		if o.arg != "" {
			item += " Ar " + strings.ToLower(o.arg)
		}
		want = append(want, item)
	}
	got = append(got, regexp.MustCompile(`(?m)^\.It Fl .*$`).FindAllString(string(page), -1)...)
	if !slices.Equal(got, want) {
		t.Errorf("the manual page has\n%q, want\n%q", got, want)
	}
	for name, spelled := range map[string]struct{ short, long string }{
		"pesto.bash": {"-%s ", "--%s"}, "_pesto": {"{-%s,", "--%s"}, "pesto.fish": {" -s %s ", " -l %s "},
	} {
		b, err := os.ReadFile("../packaging/completions/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range options {
			if o.short != 0 && !strings.Contains(string(b), fmt.Sprintf(spelled.short, string(o.short))) ||
				!strings.Contains(string(b), fmt.Sprintf(spelled.long, o.long)) {
				t.Errorf("%s lacks --%s", name, o.long)
			}
		}
	}
}

// TestCompletion: bash completes options, tables, port specifications and paths.
func TestCompletion(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	for line, want := range map[string]string{
		"pesto --de": "--delete --debug", "pesto -C S": "SPLICE", "pesto -A -t a": "all auto", "pesto ../man/pes": "../man/pesto.1", "pesto -A": "-A",
	} {
		out, err := exec.Command("bash", "-c", `. ../packaging/completions/pesto.bash
			compopt() { :; }
			read -ra COMP_WORDS <<<"$1"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _pesto; echo "${COMPREPLY[*]}"`, "bash", line).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", line, got, err, want)
		}
	}
}

// TestFullBacklog: pesto waits where as many wait for the instance as may.
func TestFullBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if c, err := net.Dial("unix", path); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("the backlog is not full: %v, %v", c, err)
	}
	time.AfterFunc(50*time.Millisecond, func() {
		if n, _, err := unix.Accept(fd); err == nil {
			unix.Close(n)
		}
	})
	c, err := dial(path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
