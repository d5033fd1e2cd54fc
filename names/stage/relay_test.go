// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"syscall"
	"testing"

	"aldente/ipc"
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
