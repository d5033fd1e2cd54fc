// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRunnerSplits parses the runner: all that it calls of this package is nosplit
// and norace, and it allocates nothing and locks nothing by name.
func TestRunnerSplits(t *testing.T) {
	fset := token.NewFileSet()
	funcs := map[string]*ast.FuncDecl{}
	for _, name := range []string{"run_unsafe.go", "clone_unsafe.go", "heap_unsafe.go"} {
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				funcs[fn.Name.Name] = fn
			}
		}
	}
	todo, done := []string{"run", "resetSignals", "keepStack", "giveBack"}, map[string]bool{}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		fn := funcs[name]
		if done[name] || fn == nil {
			continue
		}
		done[name] = true
		doc := ""
		if fn.Doc != nil {
			for _, c := range fn.Doc.List {
				doc += c.Text + "\n"
			}
		}
		for _, want := range []string{"//go:nosplit", "//go:norace"} {
			if !strings.Contains(doc, want+"\n") {
				t.Errorf("%s is not %s", name, want)
			}
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit, *ast.GoStmt, *ast.DeferStmt, *ast.SelectStmt:
				t.Errorf("%s: %s is not for a child", name, fset.Position(n.Pos()))
			case *ast.CallExpr:
				switch f := n.Fun.(type) {
				case *ast.Ident:
					if f.Name == "append" || f.Name == "make" || f.Name == "new" || f.Name == "panic" {
						t.Errorf("%s: %s is not for a child", name, fset.Position(n.Pos()))
					}
					todo = append(todo, f.Name)
				case *ast.SelectorExpr:
					x, ok := f.X.(*ast.Ident)
					if !ok || x.Name != "unsafe" && !(x.Name == "syscall" && strings.HasPrefix(f.Sel.Name, "RawSyscall")) {
						t.Errorf("%s: %s calls out", name, fset.Position(n.Pos()))
					}
				}
			}
			return true
		})
	}
	if len(done) < 10 {
		t.Errorf("only %d functions are the runner's", len(done))
	}
}

// TestWithoutHeap: a child that is to have no more of the heap than it needs cannot
// show what the parent has there, has all that its steps point to, and the parent's next
// child has everything again.
func TestWithoutHeap(t *testing.T) {
	secret := make([]byte, 1<<20) // pages of its own
	copy(secret[1<<19:], "the parent's")
	at := fromHeap(&secret[1<<19])
	for _, tt := range []struct {
		name  string
		bare  bool
		want  string
		errno unix.Errno
	}{
		{"bare", true, "", unix.EFAULT},
		{"whole", false, "the parent's", 0},
		{"bare once more", true, "", unix.EFAULT},
	} {
		r, w := pipe(t)
		out, in := pipe(t)
		l := New(int(w.Fd()), 9)
		if tt.bare {
			l.WithoutHeap()
		}
		l.Must(unix.SYS_WRITE, int(in.Fd()), "own ", 4)
		l.Note(unix.SYS_WRITE, int(in.Fd()), at, 12)
		if err := l.Exec("/bin/sh", []string{"/nonexistent", "/bin/sh"}, []string{"sh", "-c", "exit $STATUS"}, []string{"STATUS=5"}, 9); err != nil {
			t.Fatal(err)
		}
		all, exit := finish(t, l, r, w)
		in.Close()
		said, err := io.ReadAll(out)
		if err != nil || string(said) != "own "+tt.want {
			t.Errorf("%s: the child wrote %q, %v", tt.name, said, err)
		}
		var errno unix.Errno
		if len(all) > 0 && all[0].Failed != nil {
			errno = all[0].Failed.Errno
		}
		if errno != tt.errno || exit != 5 {
			t.Errorf("%s: %v, exit status %d, want %v, 5", tt.name, errno, exit, tt.errno)
		}
	}
	runtime.KeepAlive(secret)
}

// TestSignalsInChild: what the parent handles ends the child as if there were no
// handler, what the parent ignores it ignores, and it blocks what the parent does.
func TestSignalsInChild(t *testing.T) {
	c := make(chan os.Signal, 9)
	signal.Notify(c, unix.SIGUSR1)
	signal.Ignore(unix.SIGUSR2)
	defer signal.Reset(unix.SIGUSR1, unix.SIGUSR2)
	for _, bare := range []bool{false, true} {
		for sig, want := range map[unix.Signal]unix.Signal{unix.SIGUSR1: unix.SIGUSR1, unix.SIGUSR2: 0} {
			l := New(-1, 9)
			if bare {
				l.WithoutHeap()
			}
			const self Slot = 0
			l.Try(unix.SYS_GETPID).Into(self)
			l.Try(unix.SYS_KILL, self, int(sig))
			pid, errno := l.Start(0, nil)
			ws := status(t, pid, errno)
			if want != 0 && (!ws.Signaled() || ws.Signal() != want) || want == 0 && (!ws.Exited() || ws.ExitStatus() != 0) {
				t.Errorf("bare %t: %v: wait status %#x", bare, sig, uint32(ws))
			}
		}
	}
	if len(c) != 0 {
		t.Error("the parent has got a signal")
	}
}
