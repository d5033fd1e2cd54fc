// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// speaker is a server on a status socket of this process, which gives for each command
// the lines of an answer; what it has no lines for, it does not answer.
func speaker(t *testing.T, answers map[string]func(net.Conn)) (path string) {
	t.Helper()
	for n := 4_000_000_000; ; n++ {
		path = fmt.Sprintf("@%s%d", api.Prefix, n)
		l, err := net.Listen("unix", path)
		if err != nil && n < 4_000_000_100 {
			continue
		}
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
					line, err := bufio.NewReader(c).ReadBytes('\n')
					var r api.Request
					if err != nil || json.Unmarshal(line, &r) != nil {
						return
					}
					if answer := answers[r.Command]; answer != nil {
						answer(c)
						return
					}
					_, _ = c.Read(make([]byte, 1)) // until the client has had enough
				}()
			}
		}()
		return path
	}
}

// lines answers with text.
func lines(text ...string) func(net.Conn) {
	return func(c net.Conn) { _, _ = c.Write([]byte(strings.Join(text, "\n") + "\n")) }
}

func reply(t *testing.T, r api.Reply) string {
	t.Helper()
	b, err := json.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pasta answers all that the views ask.
func pasta(t *testing.T) map[string]func(net.Conn) {
	return map[string]func(net.Conn){
		api.Status: lines(reply(t, api.Reply{Status: &api.StatusReply{Version: "1", Personality: "pasta", PID: os.Getpid(), WorkerPID: 2, Connected: true, Guest: "sh\x1b[2J"}})),
		api.Flows: lines(
			reply(t, api.Reply{Flows: []api.Flow{{Protocol: "tcp", Direction: "out", State: "ESTABLISHED", Guest: "192.0.2.2:40000", Remote: "198.51.100.9:443", Age: 9, Sent: 1234, Name: "\u202eevil\x1b[1m"}}}),
			reply(t, api.Reply{Flows: []api.Flow{{Protocol: "udp", Direction: "out", State: "open", Guest: "192.0.2.2:40000", Remote: "198.51.100.9:53", Age: 9, Received: 99_000}}})),
		api.Counters: lines(reply(t, api.Reply{Counters: &api.CountersReply{Counters: []api.Counter{{Name: "things_total", Help: "Things.", Value: 3}}}})),
	}
}

// onThis runs the client about the instance of this process.
func onThis(args ...string) (status int, out, errs string) {
	var o, e bytes.Buffer
	argv := append([]string{"aldentectl"}, args...)
	if args[0] != "exporter" {
		argv = append(argv, "--pid", strconv.Itoa(os.Getpid()))
	}
	status = run(argv, &o, &e)
	return status, o.String(), e.String()
}

// TestFlowsCommand: the table, what is chosen of it, and JSON.
func TestFlowsCommand(t *testing.T) {
	speaker(t, pasta(t))
	for _, tt := range []struct {
		args string
		want []string // lines begin so
		errs string
	}{
		{args: "", want: []string{"PROTO  DIR  STATE", "udp", "tcp    out  ESTABLISHED  192.0.2.2:40000  198.51.100.9:443 (?evil?[1m)"}},
		{args: "--sort received", want: []string{"PROTO", "udp", "tcp"}},
		{args: "--sort received --reverse", want: []string{"PROTO", "tcp", "udp"}},
		{args: "--protocol udp", want: []string{"PROTO", "udp"}},
		{args: "--port 443", want: []string{"PROTO", "tcp"}},
		{args: "--address 198.51.100.0/24 --state established", want: []string{"PROTO", "tcp"}},
		{args: "--direction in", want: []string{"PROTO"}},
		{args: "--interval 0.1 evil", want: []string{"PROTO  DIR  STATE        GUEST            REMOTE                        UP/s  DOWN/s", "tcp"}},
		{args: "--interval 0.1 --count 2 !evil", want: []string{"PROTO", "udp", "", "PROTO", "udp"}},
		{args: "--protocol sctp", errs: "--protocol takes tcp, udp, icmp, not 'sctp'"},
		{args: "--direction up", errs: "--direction takes"},
		{args: "--sort size", errs: "--sort takes rate, "},
		{args: "--port http", errs: "'http' is no port"},
		{args: "--address x", errs: "'x' is no address"},
		{args: "--interval 0", errs: "--interval takes a number from 0.1"},
		{args: "--interval x", errs: "--interval takes"},
		{args: "--count 2", errs: "--count needs --interval"},
	} {
		st, out, errs := onThis(append([]string{"flows"}, strings.Fields(tt.args)...)...)
		if (st == 0) != (tt.errs == "") || !strings.Contains(errs, tt.errs) {
			t.Errorf("flows %s: status %d: %s", tt.args, st, errs)
		}
		got := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		if tt.errs == "" && !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
			t.Errorf("flows %s:\n%s", tt.args, out)
		}
		if strings.ContainsAny(out, "\x1b\u202e") {
			t.Errorf("%q", out)
		}
	}
	_, out, _ := onThis("flows", "--json", "--interval", "0.1")
	var r flowsReply
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Flows) != 2 || !r.Rates || r.PID != os.Getpid() || !strings.Contains(out, `"sent_rate"`) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestTopCommand: one screen, as text and as JSON; no screen without a terminal.
func TestTopCommand(t *testing.T) {
	speaker(t, pasta(t))
	if st, out, errs := onThis("top", "--once", "--interval", "0.2"); st != 0 || !strings.Contains(out, fmt.Sprintf("pasta %d", os.Getpid())) || !strings.Contains(out, "198.51.100.9:443") || strings.Contains(out, "\x1b[2J") {
		t.Errorf("status %d: %s\n%s", st, errs, out)
	}
	var r struct{ Flows []watch.Row }
	if st, out, errs := onThis("top", "--json", "--interval", "0.2", "udp"); st != 0 || json.Unmarshal([]byte(out), &r) != nil || len(r.Flows) != 1 {
		t.Errorf("status %d: %s\n%s", st, errs, out)
	}
	if st, _, errs := onThis("top"); st != 1 || !strings.Contains(errs, "needs a terminal") {
		t.Errorf("status %d: %s", st, errs)
	}
	for _, args := range [][]string{{"--interval", "0.01"}, {"--sort", "x"}, {"--pid", "x", "--once"}} {
		if st, _, errs := onThis(append([]string{"top"}, args...)...); st != 1 && args[0] != "--pid" || strings.Count(errs, "\n") > 2 {
			t.Errorf("%v: status %d: %s", args, st, errs)
		}
	}
}

// TestMetricsCommand: OpenMetrics, and JSON.
func TestMetricsCommand(t *testing.T) {
	speaker(t, pasta(t))
	if st, out, errs := onThis("metrics"); st != 0 || !strings.Contains(out, "aldente_things_total{guest=\"sh?[2J\",") || !strings.HasSuffix(out, "\n# EOF\n") {
		t.Errorf("status %d: %s\n%s", st, errs, out)
	}
	var r api.CountersReply
	if st, out, errs := onThis("metrics", "--json"); st != 0 || json.Unmarshal([]byte(out), &r) != nil || len(r.Counters) != 1 {
		t.Errorf("status %d: %s\n%s", st, errs, out)
	}
	for listen, want := range map[string]string{":9741": "names no address", "x": "no address and port", "192.0.2.77:9741": "cannot listen on 192.0.2.77:9741"} {
		if st, _, errs := onThis("exporter", "--listen", listen); st != 1 || !strings.Contains(errs, want) {
			t.Errorf("--listen %s: status %d: %s", listen, st, errs)
		}
	}
}

// TestByTurns: whoever makes many sockets has no other user's instance behind more
// than one of them.
func TestByTurns(t *testing.T) {
	var all []looked
	for pid := range 1000 {
		all = append(all, looked{fmt.Sprintf("squatter %d", pid), pid, 1001})
	}
	all = append(all, looked{"a", 2000, 0}, looked{"b", 2001, 1002}, looked{"c", 2002, 0})
	var first []string
	for _, l := range byTurns(all)[:5] {
		first = append(first, l.path)
	}
	if want := []string{"squatter 0", "a", "b", "squatter 1", "c"}; !slices.Equal(first, want) {
		t.Errorf("%q, want %q", first, want)
	}
}

// TestFind: whoever listens is found, whether it answers or not.
func TestFind(t *testing.T) {
	good, hangs := speaker(t, pasta(t)), speaker(t, nil)
	all, err := find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{good, hangs} {
		if !slices.ContainsFunc(all, func(in watch.Instance) bool {
			return in.(looked).path == path && in.(looked).pid == os.Getpid() && in.Name() == strings.TrimPrefix(path, "@"+api.Prefix)
		}) {
			t.Errorf("no %s in %v", path, all)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := watch.Look(ctx, looked{path: hangs}, api.Flows); err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Error(err)
	}
	if _, err := watch.Look(t.Context(), looked{path: good}, api.Status, api.Flows, api.Counters); err != nil {
		t.Error(err)
	}
}

// TestHostileServer: whatever an instance answers, the client ends, with an error of one
// line.
func TestHostileServer(t *testing.T) {
	endless := func(line string) func(net.Conn) {
		return func(c net.Conn) {
			for {
				if _, err := c.Write([]byte(line)); err != nil {
					return
				}
			}
		}
	}
	for name, answer := range map[string]func(net.Conn){
		"nothing":         lines(),
		"no JSON":         lines("flows\x1b[2J"),
		"wrong types":     lines(`{"flows":{"a":1}}`),
		"error":           lines(`{"error":"\u001b[2J\nno"}`),
		"half a line":     func(c net.Conn) { _, _ = c.Write([]byte(`{"flows":[`)) },
		"no end of line":  endless(strings.Repeat("x", 1<<20)),
		"no end of lines": endless("{}\n"),
		"too many flows":  endless(`{"flows":[` + strings.TrimSuffix(strings.Repeat("{},", 10_000), ",") + "]}\n"),
		"numbers":         lines(`{"flows":[{"age":1e999}]}`),
		"deep":            lines(strings.Repeat("[", 1<<20)),
		"silence":         nil,
	} {
		t.Run(name, func(t *testing.T) {
			in := looked{path: speaker(t, map[string]func(net.Conn){api.Flows: answer})}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			s, err := watch.Look(ctx, in, api.Flows)
			if err == nil {
				t.Fatalf("%+v", s)
			}
			var out bytes.Buffer
			if fmt.Fprintln(clean{&out}, watch.Text(err.Error())); strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != 1 {
				t.Errorf("%q", out.String())
			}
		})
	}
}
