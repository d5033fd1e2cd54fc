// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// bare logs "LEVEL text" lines.
func bare(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// up is a worker that has come up.
func up() *atomic.Bool {
	b := new(atomic.Bool)
	b.Store(true)
	return b
}

// TestEarlyErrors: what ends a worker before it is up is told once, by its
// account of its end.
func TestEarlyErrors(t *testing.T) {
	var b bytes.Buffer
	r := newLogReader(bare(&b), new(atomic.Bool))
	r.read(io.NopCloser(strings.NewReader("<4>a\n<3>b\n")))
	if want := "level=WARN msg=a\nlevel=DEBUG msg=b\n"; b.String() != want || r.lastError() != "b" {
		t.Errorf("logged %q, want %q; last error %q", b.String(), want, r.lastError())
	}
}

func TestLogLines(t *testing.T) {
	tests := []struct {
		name, input, logged string
		death               []string
	}{
		{"levels", "<7>a\n<6>b\n<5>c\n<4>d\n<3>e\n<0>f\n",
			"level=DEBUG msg=a\nlevel=INFO msg=b\nlevel=INFO msg=c\nlevel=WARN msg=d\nlevel=ERROR msg=e\nlevel=ERROR msg=f\n", nil},
		{"no newline at the end", "<6>a", "level=INFO msg=a\n", nil},
		{"empty text", "<6>\n", "level=INFO msg=\"\"\n", nil},
		{"long line is cut", "<6>" + strings.Repeat("x", 3*maxLine) + "\n<6>next\n",
			"level=INFO msg=" + strings.Repeat("x", maxLine-3) + "\nlevel=INFO msg=next\n", nil},
		{"control characters", "<6>a\tb\x1b[0m\x00\u202e\xff\n", "level=INFO msg=\"a b?[0m??\ufffd\"\n", nil},
		{"no such level", "<8>a\n<66>b\n", "", []string{"<8>a", "<66>b"}},
		{"panic", "panic: x\n\ngoroutine 1:\nmain.main()\n\ngoroutine 2:\nother()\n", "",
			[]string{"panic: x", "", "goroutine 1:", "main.main()"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			r := newLogReader(bare(&b), up())
			r.read(io.NopCloser(strings.NewReader(tt.input)))
			if d := cmp.Diff(tt.logged, b.String()); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.death, r.panicText()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLogFloodIsBounded(t *testing.T) {
	var b bytes.Buffer
	r := newLogReader(bare(&b), up())
	r.read(io.NopCloser(strings.NewReader(strings.Repeat("<4>flood\n", 100000) + strings.Repeat("dying\n", 100000))))
	if n := strings.Count(b.String(), "flood"); n < logRate.Burst || n > logRate.Burst+10*logRate.PerSecond {
		t.Errorf("%d lines logged", n)
	}
	if !strings.Contains(b.String(), "suppressed") {
		t.Error("suppression not told")
	}
	if n := len(r.panicText()); n != maxPanicLines {
		t.Errorf("%d lines kept, want %d", n, maxPanicLines)
	}
}

func TestAuditedCall(t *testing.T) {
	const record = `5,1283,1713065604,-;audit: type=1326 audit(1795328485.823:2): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=18884 comm="aldente-worker" exe="/x" sig=31 arch=c000003e syscall=41 compat=0 ip=0x40866e code=0x80000000`
	tests := []struct {
		name, record string
		pid, nr      int
		ok           bool
	}{
		{"ours", record, 18884, 41, true},
		{"prefix of another's pid", record, 1888, 0, false},
		{"another's", record, 1, 0, false},
		{"no call", strings.Replace(record, "syscall", "sys", 1), 18884, 0, false},
		{"another type", strings.Replace(record, "1326", "1327", 1), 18884, 0, false},
		{"empty", "", 0, 0, false},
	}
	for _, tt := range tests {
		if nr, ok := auditedCall(tt.record, tt.pid); nr != tt.nr || ok != tt.ok {
			t.Errorf("%s: %d, %v; want %d, %v", tt.name, nr, ok, tt.nr, tt.ok)
		}
	}
}

func TestTrappedCall(t *testing.T) {
	death := []string{"SIGSYS: bad system call", "PC=0x40a58e m=0 sigcode=1", "", "goroutine 1 [running]:",
		"internal/runtime/syscall/linux.Syscall6()",
		"syscall.RawSyscall6(0x7ffdc2273fb4?, 0x1?, 0x5?, 0x2?, 0x2?, 0x4?, 0x0?)",
		"syscall.RawSyscall6(0x0, 0x2, 0x1, 0x0, 0x0, 0x0, 0x0)"}
	if unix.SYS_READ == 0 { // amd64
		if got := trappedCall(death); got != "read" {
			t.Errorf("%q", got)
		}
	}
	death[0] = "panic: x"
	if got := trappedCall(death); got != "" {
		t.Errorf("%q without SIGSYS", got)
	}
}

func TestFind(t *testing.T) {
	empty, beside, libexec := t.TempDir(), t.TempDir(), t.TempDir()
	for _, dir := range []string{beside, libexec} {
		if err := os.WriteFile(filepath.Join(dir, Worker.File), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ self, libexec, want string }{
		{beside, libexec, beside},
		{empty, libexec, libexec},
		{beside, "", beside},
	} {
		got, err := find(Worker.File, tt.self, tt.libexec)
		if want := filepath.Join(tt.want, Worker.File); got != want || err != nil {
			t.Errorf("find(%s, %s) = %s, %v; want %s", tt.self, tt.libexec, got, err, want)
		}
	}
	if got, err := find(Worker.File, empty, ""); err == nil {
		t.Errorf("found %s", got)
	}
	if err := os.Chmod(filepath.Join(beside, Worker.File), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := find(Worker.File, beside, empty); err == nil {
		t.Errorf("found %s, which is not executable", got)
	}
}
