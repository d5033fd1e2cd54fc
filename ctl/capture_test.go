// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/fuzz"
)

// TestCaptureFilter: what flags and words ask for, and what makes no sense.
func TestCaptureFilter(t *testing.T) {
	for args, want := range map[string]api.CaptureSpec{
		"":                                    {},
		"tcp":                                 {Protocol: "tcp"},
		"port 443 and host 192.0.2.1 and tcp": {Protocol: "tcp", Address: "192.0.2.1", Port: 443},
		"host ::ffff:192.0.2.1":               {Address: "192.0.2.1"},
		"host 2001:db8::1 udp port 53":        {Protocol: "udp", Address: "2001:db8::1", Port: 53},
		"arp --drops --snap 64":               {Protocol: "arp", Drops: true, Snap: 64},
		"icmp -w x --count=3":                 {Protocol: "icmp"},
		"icmp -wx":                            {Protocol: "icmp"},
	} {
		c := &call{command: named("capture"), program: "aldentectl", given: map[string]string{}}
		err := c.parse(strings.Fields(args))
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		if got, err := c.captureSpec(); err != nil || *got != want {
			t.Errorf("%s: %+v, %v, want %+v", args, got, err, want)
		}
	}
	for args, want := range map[string]string{
		"tcp udp": "of protocol tcp and udp", "host": "something behind it", "host example.org": "takes one IP address", "host fe80::1%lo": "takes one IP address",
		"host 192.0.2.1 host 192.0.2.2": "takes one IP address", "port 0": "takes one number", "port 65536": "takes one number", "port 1 port 2": "takes one number",
		"sctp": "'sctp' could mean", "or": "'or' could mean", "--snap 0": "no number from 1", "--count -1": "no number from 1", "--snap x": "no number",
		"-w": "requires an argument", "-x": "invalid option '-x'",
	} {
		if st, out := ctl(append([]string{"capture"}, strings.Fields(args)...)...); st != 1 || !strings.Contains(out, want) {
			t.Errorf("%s: status %d: %s, want %q", args, st, out, want)
		}
	}
}

func named(name string) *command {
	for i := range commands {
		if commands[i].name == name {
			return &commands[i]
		}
	}
	return nil
}

// blockOf makes a block.
func blockOf(typ uint32, body ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, typ)
	b = append(binary.NativeEndian.AppendUint32(b, uint32(len(body)+12)), body...)
	return binary.NativeEndian.AppendUint32(b, uint32(len(body)+12))
}

func words(v ...uint32) (b []byte) {
	for _, w := range v {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

// aCapture is a stream of one frame, and one that was left out.
func aCapture() []byte {
	u16 := func(a, b uint16) []byte {
		return binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, a), b)
	}
	ns := uint64(1700000000123456789)
	frame := bytes.Join([][]byte{words(0, uint32(ns>>32), uint32(ns), 5, 99), {1, 2, 3, 4, 5, 0, 0, 0}, u16(2, 4), words(2), u16(4, 8),
		binary.NativeEndian.AppendUint64(nil, 7), u16(1, 5), {'d', 27, '[', '2', 'J', 0, 0, 0}, words(0)}, nil)
	return bytes.Join([][]byte{blockOf(blockSection, words(sectionMagic, 1, 1<<32-1, 1<<32-1)...), blockOf(1, words(1, 0)...), blockOf(blockPacket, frame...),
		blockOf(blockStatistics, bytes.Join([][]byte{words(0, 0, 0), u16(5, 8), binary.NativeEndian.AppendUint64(nil, 8), words(0)}, nil)...)}, nil)
}

// TestCaptureWriter: the stream goes through as it is, or as JSON that moves no cursor;
// what is no stream is told of.
func TestCaptureWriter(t *testing.T) {
	good := aCapture()
	write := func(b []byte, asJSON bool, most uint64) (string, *captureWriter, error) {
		var out bytes.Buffer
		w := &captureWriter{out: bufio.NewWriter(&out), json: asJSON, most: most}
		err := w.copy(bytes.NewReader(b))
		w.out.Flush()
		return out.String(), w, err
	}
	got, w, err := write(good, false, 0)
	if err != nil || got != string(good) || w.frames != 1 || w.lost != 8 {
		t.Errorf("%d bytes of %d, %+v, %v", len(got), len(good), w, err)
	}
	got, w, err = write(good, false, 1)
	if err != nil || !w.enough() || !strings.HasPrefix(string(good), got) || len(got) >= len(good) {
		t.Errorf("%d bytes of %d, %+v, %v", len(got), len(good), w, err)
	}
	got, _, err = write(good, true, 0)
	want := `{"time":"2023-11-14T22:13:20.123456789Z","direction":"out","length":99,"left_out":7,"comment":"d\u001b[2J","bytes":"0102030405"}` + "\n"
	if err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	for name, b := range map[string][]byte{
		"half a block": good[:len(good)-1], "half a head": good[:len(good)-60+4], "something else": []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"another section": append(bytes.Clone(good), good...), "none": good[28:], "a length that is none": append(good[:28:28], words(6, 13, 0, 13)...),
		"of another byte order": append(words(blockSection, 28, 0x4d3c2b1a, 1, 0, 0), words(28)...), "much": append(good[:28:28], words(6, 1<<30)...),
		"two lengths": append(good[:28:28], words(6, 16, 0, 12)...), "bytes beyond": append(good[:28:28], blockOf(6, words(0, 0, 0, 5, 5, 0)...)...),
		"an option beyond": append(good[:28:28], blockOf(6, words(0, 0, 0, 0, 0, 0xffff0001)...)...), "nothing in it": append(good[:28:28], blockOf(6)...),
	} {
		if _, _, err := write(b, false, 0); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

// FuzzCaptureStream reads any stream: what goes through is what came, block by block,
// and each line of JSON can be read and holds nothing that moves a cursor.
func FuzzCaptureStream(f *testing.F) {
	good := aCapture()
	fuzz.Add(f, good)
	fuzz.Add(f, good[:len(good)-1])
	for at := 28; at < len(good); at++ {
		changed := bytes.Clone(good)
		changed[at] ^= 0xff
		fuzz.Add(f, changed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var raw, lines bytes.Buffer
		w := &captureWriter{out: bufio.NewWriter(&raw)}
		err := w.copy(bytes.NewReader(b))
		w.out.Flush()
		if !bytes.HasPrefix(b, raw.Bytes()) || err == nil && raw.Len() != len(b) {
			t.Fatalf("%d bytes of %d, %v", raw.Len(), len(b), err)
		}
		j := &captureWriter{out: bufio.NewWriter(&lines), json: true}
		again := j.copy(bytes.NewReader(b))
		j.out.Flush()
		if (again == nil) != (err == nil) || j.frames != w.frames {
			t.Fatalf("%d frames, %v; as JSON %d, %v", w.frames, err, j.frames, again)
		}
		for line := range strings.Lines(lines.String()) {
			var s struct{ Bytes string }
			if err := json.Unmarshal([]byte(line), &s); err != nil || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("%q: %v", line, err)
			}
		}
	})
}

// captureServer answers one capture's request with words and descriptors.
func captureServer(t *testing.T, answer string, fds ...int) (path string) {
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
			line, _ := bufio.NewReader(c).ReadString('\n')
			if strings.Contains(line, `"status"`) {
				fmt.Fprintln(c, `{"status":{"personality":"pasta"}}`)
			} else if answer != "" {
				_, _, _ = c.(*net.UnixConn).WriteMsgUnix([]byte(answer), unix.UnixRights(fds...), nil)
			}
			c.Close()
		}
	}()
	return path
}

// TestCaptureInstances: what may answer, and what becomes of it. An earlier file is only
// replaced where there is something to write.
func TestCaptureInstances(t *testing.T) {
	var p, q [2]int
	if unix.Pipe2(p[:], unix.O_CLOEXEC) != nil || unix.Pipe2(q[:], unix.O_CLOEXEC) != nil {
		t.Fatal("no pipe")
	}
	defer func() { unix.Close(p[0]); unix.Close(q[0]); unix.Close(q[1]) }()
	if _, err := unix.Write(p[1], aCapture()); err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1])
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	out := filepath.Join(t.TempDir(), "capture")
	for _, tt := range []struct {
		name, answer string
		fds          []int
		st           int
		text         string
	}{
		{"refuses", `{"error":"4 captures \u001b[2J"}` + "\n", nil, 1, "4 captures ?[2J"},
		{"brings nothing", "{}\n", nil, 1, "answered something else"},
		{"brings a file", "{}\n", []int{int(file.Fd())}, 1, "answered something else"},
		{"brings the other end", "{}\n", []int{q[1]}, 1, "answered something else"},
		{"brings two", "{}\n", []int{q[0], q[0]}, 1, "answered something else"},
		{"brings many", "{}\n", []int{q[0], q[0], q[0], q[0]}, 1, "answered something else"},
		{"says nothing", "", nil, 1, "does not speak"},
		{"says half", "{", []int{q[0]}, 1, "unexpected EOF"},
		{"ends", "{}\n", []int{p[0]}, 0, "1 frames captured, 8 left out"},
	} {
		if err := os.WriteFile(out, []byte("of yesterday"), 0o600); err != nil {
			t.Fatal(err)
		}
		st, text := ctl("capture", "--socket", captureServer(t, tt.answer, tt.fds...), "-w", out)
		b, err := os.ReadFile(out)
		want := "of yesterday"
		if tt.st == 0 {
			want = string(aCapture())
		}
		if st != tt.st || !strings.Contains(text, tt.text) || err != nil || string(b) != want {
			t.Errorf("%s: status %d: %s; the file has %q, %v", tt.name, st, text, b, err)
		}
	}
}

// TestCaptureLive: each frame is written as soon as it has come.
func TestCaptureLive(t *testing.T) {
	r, w := io.Pipe()
	shown, out := io.Pipe()
	c := &captureWriter{out: bufio.NewWriter(out)}
	ended := make(chan error, 1)
	go func() { ended <- c.copy(r) }()
	b := aCapture()
	go func() { _, _ = w.Write(b) }()
	time.AfterFunc(10*time.Second, func() { shown.CloseWithError(errors.New("too late")) })
	got := make([]byte, len(b))
	if _, err := io.ReadFull(shown, got); err != nil || !bytes.Equal(got, b) {
		t.Fatal(err)
	}
	w.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
