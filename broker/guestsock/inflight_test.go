// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"encoding/binary"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestInflight: a front end gets memory of its own, which is empty, in the answer that
// it waits for; nobody else is answered.
func TestInflight(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	s, err := Listen(path, ipc.LinkVhostUser, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := &ipc.Inflight{Bytes: 8192, Queues: 2, Ring: 256, Payload: 24}
	s.Inflight(r) // of nobody
	w := newWorker()
	go s.Serve(w)
	fd := connect(t, path)
	w.taken(t)
	s.Inflight(r)
	wantInflight(t, fd, r)
	r.Payload = ipc.InflightPayload
	s.Inflight(r)
	wantInflight(t, fd, r)

	// One that does not read is hung up on, and nobody waits.
	for n := 0; s.Connected() && n < 1<<20; n++ {
		if err := unix.Sendmsg(s.client, make([]byte, 64<<10), nil, nil, unix.MSG_DONTWAIT); err != nil {
			break
		}
	}
	s.Inflight(r)
	var rest [64 << 10]byte
	for n := 1; n > 0; {
		if n, err = unix.Read(fd, rest[:]); err != nil {
			t.Fatal(err)
		}
	}

	given := Given(ipc.LinkVhostUser, slog.New(slog.DiscardHandler))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if given.SetClient(-1) == nil {
		t.Error("no descriptor is one")
	}
	if err := given.SetClient(pair[0]); err != nil {
		t.Fatal(err)
	}
	given.Inflight(r)
	wantInflight(t, pair[1], r)
	given.Closed()
	given.Inflight(r)
}

// wantInflight reads an answer.
func wantInflight(t *testing.T, fd int, r *ipc.Inflight) {
	t.Helper()
	b, oob := make([]byte, 100), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	want := binary.NativeEndian.AppendUint32(nil, getInflightFD)
	want = binary.NativeEndian.AppendUint32(want, 5)
	want = binary.NativeEndian.AppendUint32(want, r.Payload)
	want = binary.NativeEndian.AppendUint64(want, uint64(r.Bytes))
	want = binary.NativeEndian.AppendUint64(want, 0)
	want = binary.NativeEndian.AppendUint16(want, r.Queues)
	want = binary.NativeEndian.AppendUint16(want, r.Ring)
	want = append(want, make([]byte, r.Payload-20)...)
	if !slices.Equal(b[:n], want) {
		t.Errorf("%x, want %x", b[:n], want)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	defer unix.Close(fds[0])
	mem, err := unix.Mmap(fds[0], 0, int(r.Bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if slices.Max(mem) != 0 {
		t.Error("it is not empty")
	}
	mem[0] = 1
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil || st.Size != int64(r.Bytes) {
		t.Errorf("%d bytes, %v", st.Size, err)
	}
}
