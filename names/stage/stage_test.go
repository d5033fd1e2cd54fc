// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"crypto/tls"
	"slices"
	"syscall"
	"testing"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/names/hello/hellotest"
)

// env is a loop without a kernel: descriptors are pieces that were sent and written.
type env struct {
	t    testing.TB
	told [][]byte
	fds  map[int]*file
	next int
	no   syscall.Errno // of Watch
}

// file is a descriptor.
type file struct {
	in       [][]byte // messages to be read
	end      bool     // behind them
	out      [][]byte
	room     int // bytes that are taken, -1: any number
	err      syscall.Errno
	watched  bool
	writable bool
	id       uint32
	reads    int
	closed   bool
}

func newEnv(t testing.TB) *env { return &env{t: t, fds: map[int]*file{}, next: 3} }

func (e *env) open() (int, *file) {
	e.next++
	f := &file{room: -1}
	e.fds[e.next] = f
	return e.next, f
}

func (e *env) file(fd int) *file {
	f := e.fds[fd]
	if f == nil || f.closed {
		e.t.Fatalf("descriptor %d is not open", fd)
	}
	return f
}

func (e *env) Tell(rec []byte) { e.told = append(e.told, rec) }

func (e *env) Read(fd int, b []byte) (int, syscall.Errno) {
	f := e.file(fd)
	f.reads++
	switch {
	case len(f.in) > 0:
		n := copy(b, f.in[0])
		if f.in[0] = f.in[0][n:]; len(f.in[0]) == 0 {
			f.in = f.in[1:]
		}
		return n, 0
	case f.end:
		return 0, f.err
	}
	return 0, syscall.EAGAIN
}

func (e *env) Write(fd int, b []byte) (int, syscall.Errno) {
	f := e.file(fd)
	if f.err != 0 {
		return 0, f.err
	}
	n := len(b)
	if f.room >= 0 {
		n = min(n, f.room)
		f.room -= n
	}
	if n == 0 && len(b) > 0 {
		return 0, syscall.EAGAIN
	}
	f.out = append(f.out, bytes.Clone(b[:n]))
	return n, 0
}

func (e *env) Watch(fd int, id uint32, writable bool) syscall.Errno {
	f := e.file(fd)
	if f.watched {
		e.t.Fatalf("descriptor %d is watched twice", fd)
	}
	f.watched, f.id, f.writable = e.no == 0, id, writable
	return e.no
}

func (e *env) Unwatch(fd int) { e.file(fd).watched = false }
func (e *env) Close(fd int)   { f := e.file(fd); f.closed, f.watched = true, false }

// one is the only record that was told since the last.
func (e *env) one() []byte {
	e.t.Helper()
	if len(e.told) != 1 {
		e.t.Fatalf("%d records: %x", len(e.told), e.told)
	}
	rec := e.told[0]
	e.told = nil
	return rec
}

func (e *env) staged() (s ipc.Staged) {
	e.t.Helper()
	if err := s.Decode(e.one()); err != nil {
		e.t.Fatal(err)
	}
	return s
}

func (e *env) passed() (p ipc.Passed) {
	e.t.Helper()
	if err := p.Decode(e.one()); err != nil {
		e.t.Fatal(err)
	}
	return p
}

func (e *env) allClosed() {
	e.t.Helper()
	for fd, f := range e.fds {
		if !f.closed {
			e.t.Fatalf("descriptor %d is open", fd)
		}
	}
}

func tlsHello(name string) []byte {
	return hellotest.Hello(&tls.Config{ServerName: name, InsecureSkipVerify: true})
}

// TestPass: what was read until the name was known is written, and nothing else is read;
// then nothing is left.
func TestPass(t *testing.T) {
	b := tlsHello("www.example.org")
	for _, cut := range []int{1, 5, 100, len(b) - 1, len(b)} {
		e := newEnv(t)
		f := New(e)
		fd, pair := e.open()
		pair.in = [][]byte{b[:cut]}
		f.Begin(&ipc.Stage{ID: 7, What: ipc.StageTLS}, fd)
		want := bytes.Clone(b)
		if cut < len(b) {
			if len(e.told) != 0 || !pair.watched || pair.id != 7 {
				t.Fatalf("after %d bytes: %x", cut, e.told)
			}
			pair.in = [][]byte{append(bytes.Clone(b[cut:]), "early"...)}
			want = append(want, "early"...)
			f.Ready(7)
		}
		if s := e.staged(); s.ID != 7 || s.Found != ipc.FoundName || s.Name.String() != "www.example.org" {
			t.Fatalf("%+v", s)
		}
		pair.in, pair.reads = [][]byte{[]byte("more")}, 0
		f.Ready(7)
		if pair.reads != 0 || pair.watched {
			t.Fatal("more is read, or waited for")
		}
		to, socket := e.open()
		socket.room = 10
		f.Socket(&ipc.StageSocket{ID: 7}, to)
		f.Ready(7)
		if len(e.told) != 0 || !socket.watched || !socket.writable {
			t.Fatalf("with room for ten bytes: %x", e.told)
		}
		socket.room = -1
		f.Ready(7)
		if p := e.passed(); p != (ipc.Passed{ID: 7, Count: uint32(len(want))}) || !bytes.Equal(bytes.Join(socket.out, nil), want) {
			t.Fatalf("%+v", p)
		}
		if e.allClosed(); f.Len() != 0 {
			t.Error(f.Len())
		}
		f.Ready(7)
	}
}

// TestPassDatagrams: the same for datagrams, one by one.
func TestPassDatagrams(t *testing.T) {
	e := newEnv(t)
	f := New(e)
	all := hellotest.Flight(hellotest.Version1, tlsHello("www.example.org")[5:], 400)
	fd, pair := e.open()
	for _, d := range all {
		pair.in = append(pair.in, bytes.Clone(d))
	}
	f.Begin(&ipc.Stage{ID: 1, What: ipc.StageQUIC}, fd)
	if s := e.staged(); s.Found != ipc.FoundName || s.Name.String() != "www.example.org" {
		t.Fatalf("%+v", s)
	}
	to, socket := e.open()
	f.Socket(&ipc.StageSocket{ID: 1}, to)
	if p := e.passed(); p != (ipc.Passed{ID: 1, Count: uint32(len(all))}) || !slices.EqualFunc(socket.out, all, bytes.Equal) {
		t.Fatalf("%+v, %d written", p, len(socket.out))
	}
	e.allClosed()
}

// TestNotPassed: what has no name ends at once, as do flows that the broker forgets, in
// any state; a socket that comes for none is closed.
func TestNotPassed(t *testing.T) {
	long := make([]byte, ipc.MaxStaged+100)
	copy(long, []byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc})
	big := make([]byte, 30<<10)
	for name, c := range map[string]struct {
		what  uint8
		in    [][]byte
		end   bool
		found uint8
	}{
		"no hello":        {ipc.StageTLS, [][]byte{[]byte("GET /")}, false, ipc.FoundNotHello},
		"the end":         {ipc.StageTLS, [][]byte{{22, 3}}, true, ipc.FoundEnd},
		"nothing":         {ipc.StageQUIC, nil, true, ipc.FoundEnd},
		"too long":        {ipc.StageTLS, [][]byte{long}, false, ipc.FoundNotHello},
		"no first flight": {ipc.StageQUIC, [][]byte{big}, false, ipc.FoundNotHello},
	} {
		e := newEnv(t)
		f := New(e)
		fd, pair := e.open()
		pair.in, pair.end = c.in, c.end
		f.Begin(&ipc.Stage{ID: 1, What: c.what}, fd)
		if s := e.staged(); s.Found != c.found {
			t.Errorf("%s: %s", name, ipc.FoundText(s.Found))
		}
		e.allClosed()
	}
	for state := range 4 {
		e := newEnv(t)
		f := New(e)
		fd, pair := e.open()
		if state > 0 {
			pair.in = [][]byte{tlsHello("a.example")}
		}
		f.Begin(&ipc.Stage{ID: 1, What: ipc.StageTLS}, fd)
		to, socket := e.open()
		switch socket.room = 0; state {
		case 0, 1: // not asked for
			if f.Socket(&ipc.StageSocket{ID: uint32(1 + state)}, to); !socket.closed {
				t.Error("a socket for nobody is kept")
			}
			if state == 0 && len(e.told) > 0 {
				t.Error("something is passed of which nothing was told")
			}
		case 2, 3:
			f.Socket(&ipc.StageSocket{ID: 1}, to)
			if other, twice := e.open(); state == 3 {
				if f.Socket(&ipc.StageSocket{ID: 1}, other); !twice.closed {
					t.Error("a second socket is kept")
				}
			} else {
				twice.closed = true
			}
		}
		f.End(&ipc.StageEnd{ID: 1})
		f.End(&ipc.StageEnd{ID: 1})
		if e.allClosed(); f.Len() != 0 {
			t.Error(f.Len())
		}
	}
}

// TestFails: sockets that fail, numbers that come twice, more flows than may be, a
// descriptor that cannot be watched.
func TestFails(t *testing.T) {
	e := newEnv(t)
	f := New(e)
	fd, pair := e.open()
	pair.in = [][]byte{tlsHello("a.example")}
	f.Begin(&ipc.Stage{ID: 1, What: ipc.StageTLS}, fd)
	e.staged()
	to, socket := e.open()
	socket.err = syscall.ECONNRESET
	f.Socket(&ipc.StageSocket{ID: 1}, to)
	if p := e.passed(); p != (ipc.Passed{ID: 1, Errno: uint16(syscall.ECONNRESET)}) {
		t.Errorf("%+v", p)
	}
	e.allClosed()
	for id := range uint32(ipc.MaxStages) {
		fd, _ := e.open()
		f.Begin(&ipc.Stage{ID: id + 1, What: ipc.StageTLS}, fd)
	}
	for _, id := range []uint32{5, ipc.MaxStages + 1} {
		fd, file := e.open()
		f.Begin(&ipc.Stage{ID: id, What: ipc.StageTLS}, fd)
		if s := e.staged(); s.Found != ipc.FoundNoRoom || !file.closed {
			t.Errorf("%d: %s", id, ipc.FoundText(s.Found))
		}
	}
	e = newEnv(t)
	f = New(e)
	e.no = syscall.ENOMEM
	fd, _ = e.open()
	f.Begin(&ipc.Stage{ID: 1, What: ipc.StageTLS}, fd)
	if s := e.staged(); s.Found != ipc.FoundNoRoom {
		t.Errorf("%+v", s)
	}
	e.allClosed()
}

// FuzzStage: whatever flows bring, in whichever pieces, the broker hears of each once;
// what is written is what was read, and as much as is said; nothing is left open. The same
// for flows that go by a proxy, of what that brings.
func FuzzStage(f *testing.F) {
	b := tlsHello("www.example.org")
	fuzz.Add(f, b, uint8(0), uint8(200))
	fuzz.Add(f, b, uint8(2), uint8(3))
	fuzz.Add(f, append(bytes.Clone(b), "more"...), uint8(4), uint8(255))
	for _, d := range hellotest.Flight(hellotest.Version2, b[5:], 2000) {
		fuzz.Add(f, d, uint8(1), uint8(0))
	}
	fuzz.Add(f, []byte("GET /"), uint8(0), uint8(0))
	fuzz.Add(f, []byte{}, uint8(0), uint8(0))
	for how, answer := range map[uint8]string{
		8: "\x05\x02\x01\x00\x05\x00\x00\x01abcdefSSH", 8 + 2: "\x05\x00\x05\x00\x00\x03\x03abcdeSSH", 8 + 16: "\x05\x02\x01\x00\x05", 8 + 32: "\x05\x02\x01\x01",
		8 + 1: "HTTP/1.1 200 OK\r\n\r\nSSH", 8 + 1 + 2: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 407 Who\r\n\r\n", 8 + 1 + 64: "HTTP/1.1 200 OK\r\n\r\n",
	} {
		fuzz.Add(f, []byte(answer), how, uint8(4))
	}
	f.Fuzz(func(t *testing.T, b []byte, how, size uint8) {
		if how&8 != 0 {
			fuzzRelay(t, b, how, int(size)+1)
			return
		}
		e := newEnv(t)
		s := New(e)
		fd, pair := e.open()
		stage := ipc.Stage{ID: 1, What: ipc.StageTLS}
		piece := int(size) + 1
		if how&1 != 0 {
			stage.What, piece = ipc.StageQUIC, 5*(int(size)+1)*5
		}
		for rest := b; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
			pair.in = append(pair.in, bytes.Clone(rest[:min(piece, len(rest))]))
		}
		pair.end = true
		s.Begin(&stage, fd)
		if r := e.staged(); r.Found != ipc.FoundName {
			e.allClosed()
			return
		}
		to, socket := e.open()
		if how&2 != 0 {
			socket.room = int(size)
		}
		s.Socket(&ipc.StageSocket{ID: 1}, to)
		for len(e.told) == 0 {
			socket.room = int(size) + 1
			s.Ready(1)
		}
		p, written := e.passed(), bytes.Join(socket.out, nil)
		if !bytes.HasPrefix(b, written) || p.Errno != 0 || stage.What == ipc.StageTLS && int(p.Count) != len(written) {
			t.Fatalf("%+v, %d written", p, len(written))
		}
		if e.allClosed(); s.Len() != 0 {
			t.Fatal("something is left")
		}
	})
}
