// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"net/netip"
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/names/proxy"
)

var aProxy = ipc.Proxy{What: ipc.ProxySOCKS5, UserLen: 1, SecretLen: 2, User: [ipc.MaxProxySecret]byte{'u'}, Secret: [ipc.MaxProxySecret]byte{'p', 'w'}}

// aRelay leads to 192.0.2.1:443.
var aRelay = ipc.Relay{ID: 7, Port: 443, Addr: [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}}

func (e *env) relayed() (r ipc.Relayed) {
	e.t.Helper()
	if err := r.Decode(e.one()); err != nil {
		e.t.Fatal(err)
	}
	return r
}

// TestRelay: the proxy's answers, cut at any byte, lead to the request and to the end.
// What follows them stays unread.
func TestRelay(t *testing.T) {
	answers := []byte{5, 2, 1, 0, 5, 0, 0, 1, 10, 0, 0, 1, 0, 80}
	for cut := range answers {
		e := newEnv(t)
		f := New(e)
		f.SetProxy(&aProxy)
		fd, socket := e.open()
		socket.room = 3
		f.Relay(&aRelay, fd)
		if !socket.watched || !socket.writable {
			t.Fatal("nobody waits for room")
		}
		socket.room = -1
		f.Ready(7)
		if len(e.told) != 0 || !socket.watched || socket.writable || socket.id != 7 {
			t.Fatalf("%x, %+v", e.told, socket)
		}
		socket.in = [][]byte{bytes.Clone(answers[:cut]), append(bytes.Clone(answers[cut:]), "SSH-2.0"...)}
		if cut == 0 {
			socket.in = socket.in[1:]
		}
		f.Ready(7)
		if r := e.relayed(); r != (ipc.Relayed{ID: 7, Result: ipc.RelayDone}) {
			t.Fatalf("cut at %d: %+v", cut, r)
		}
		if want := "\x05\x02\x02\x00\x01\x01u\x02pw\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb"; string(bytes.Join(socket.out, nil)) != want {
			t.Fatalf("%q is written", socket.out)
		}
		if string(bytes.Join(socket.in, nil)) != "SSH-2.0" {
			t.Fatalf("cut at %d: %q is left", cut, socket.in)
		}
		if e.allClosed(); f.Len() != 0 {
			t.Error(f.Len())
		}
	}
}

// TestNotRelayed: what fails is told once, and closed.
func TestNotRelayed(t *testing.T) {
	for name, c := range map[string]struct {
		in     []byte
		end    bool
		err    syscall.Errno
		result uint8
		code   uint16
	}{
		"denied":  {[]byte{5, 0, 5, 2, 0, 1}, false, 0, ipc.RelayDenied, 2},
		"no user": {[]byte{5, 2, 1, 1}, false, 0, ipc.RelayAuth, 1},
		"garbage": {[]byte("HTTP/1.1 400"), false, 0, ipc.RelayGarbage, 0},
		"closed":  {[]byte{5}, true, 0, ipc.RelayClosed, 0},
		"reset":   {nil, true, syscall.ECONNRESET, ipc.RelayClosed, 0},
	} {
		e := newEnv(t)
		f := New(e)
		f.SetProxy(&aProxy)
		fd, socket := e.open()
		if socket.end, socket.err = c.end, c.err; len(c.in) > 0 {
			socket.in = [][]byte{c.in}
		}
		f.Relay(&aRelay, fd)
		if r := e.relayed(); r != (ipc.Relayed{ID: 7, Result: c.result, Code: c.code}) {
			t.Errorf("%s: %s, code %d", name, ipc.RelayText(r.Result), r.Code)
		}
		e.allClosed()
	}
}

// TestRelayNoRoom: without a proxy, with a number twice, with as many as may be; and
// those that the broker forgets, and sockets that cannot be watched.
func TestRelayNoRoom(t *testing.T) {
	e := newEnv(t)
	f := New(e)
	for i := range uint32(ipc.MaxStages + 3) {
		if i == 1 {
			f.SetProxy(&aProxy)
		}
		fd, socket := e.open()
		r := aRelay
		if r.ID = i; i == ipc.MaxStages+2 {
			r.ID = 5
		}
		f.Relay(&r, fd)
		if i == 0 || i > ipc.MaxStages {
			if r := e.relayed(); r.Result != ipc.RelayNoRoom || !socket.closed {
				t.Errorf("%d: %s", i, ipc.RelayText(r.Result))
			}
		}
	}
	for i := range uint32(ipc.MaxStages + 3) {
		f.End(&ipc.StageEnd{ID: i})
	}
	if e.allClosed(); f.Len() != 0 {
		t.Error(f.Len())
	}
	e.no = syscall.ENOMEM
	fd, _ := e.open()
	f.Relay(&aRelay, fd)
	if r := e.relayed(); r.Result != ipc.RelayClosed {
		t.Error(ipc.RelayText(r.Result))
	}
	e.allClosed()
}

// fuzzRelay has a proxy bring something in pieces: of HTTP (1), with a socket that takes
// as much at a time as the pieces have (2), one that fails behind them (32) or cannot be
// watched (64); the broker forgets the flow behind them (16). What it hears, what is written
// and what is left unread are as a client has it that gets all at once.
func fuzzRelay(t *testing.T, said []byte, how uint8, piece int) {
	e := newEnv(t)
	f := New(e)
	p := aProxy
	if how&1 != 0 {
		p.What = ipc.ProxyHTTP
	}
	f.SetProxy(&p)
	fd, socket := e.open()
	if how&64 != 0 {
		e.no = syscall.ENOMEM
	}
	room := func() {
		if how&2 != 0 {
			socket.room = piece
		}
	}
	room()
	f.Relay(&aRelay, fd)
	left := said
	for step := 0; len(e.told) == 0; step++ {
		if step > 2*len(said)+1000 {
			t.Fatal("no end")
		}
		if room(); len(socket.in) == 0 && len(left) > 0 {
			socket.in = [][]byte{bytes.Clone(left[:min(piece, len(left))])}
			left = left[len(socket.in[0]):]
		} else if len(socket.in) == 0 {
			if how&16 != 0 {
				f.End(&ipc.StageEnd{ID: 7})
				break
			}
			if socket.end = true; how&32 != 0 {
				socket.err = syscall.ECONNRESET
			}
		}
		if !socket.watched {
			t.Fatal("nobody waits for it")
		}
		f.Ready(7)
	}
	if e.allClosed(); f.Len() != 0 {
		t.Fatal("something is left")
	}
	written, unread := bytes.Join(socket.out, nil), append(bytes.Join(socket.in, nil), left...)
	want, read, result, code := atOnce(f.proxy, said)
	if !bytes.HasPrefix(want, written) {
		t.Fatalf("%q is written, want %q", written, want)
	}
	if len(e.told) == 0 {
		return
	}
	r := e.relayed()
	if how&64 != 0 && r.Result == ipc.RelayClosed {
		return
	}
	if r != (ipc.Relayed{ID: 7, Result: result, Code: code}) {
		t.Fatalf("%s, code %d; want %s, %d", ipc.RelayText(r.Result), r.Code, ipc.RelayText(result), code)
	}
	if result == ipc.RelayDone && (!bytes.Equal(written, want) || !bytes.Equal(unread, said[read:])) {
		t.Fatalf("%q is written, want %q; %q is left, want %q", written, want, unread, said[read:])
	}
}

// atOnce has a client hear all that a proxy says, and returns what it has written and how
// much it has read.
func atOnce(c *proxy.Config, said []byte) (out []byte, read int, result uint8, code uint16) {
	p := proxy.New(c, proxy.Target{Addr: netip.MustParseAddrPort("192.0.2.1:443")})
	for result == 0 {
		out = append(out, p.Out()...)
		p.Wrote(len(p.Out()))
		n := min(p.Want(), len(said)-read)
		if p.Read(bytes.Clone(said[read : read+n])); n == 0 {
			p.End()
		}
		read += n
		result, code = p.Result()
	}
	return append(out, p.Out()...), read, result, code
}
