// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/vhost"
)

// device is a link that keeps what it was told, and complains of what it must not be
// told.
type device struct {
	tb       testing.TB
	s        *Session
	said     []string
	features uint64
	regions  []vhost.Region
	log      Log
	inflight Inflight
	started  [MaxQueues]bool
	base     uint16 // that Stop returns
	fail     error  // of the next Start and SetMemory
}

func (d *device) say(format string, args ...any) {
	d.said = append(d.said, fmt.Sprintf(format, args...))
}

func (d *device) SetFeatures(f uint64) { d.features = f }
func (d *device) SetMemory(all []vhost.Region) error {
	// Those before are still mapped.
	for _, r := range d.regions {
		r.Mem[0]++
	}
	d.regions = slices.Clone(all)
	for _, r := range all {
		r.Mem[len(r.Mem)-1]++
	}
	d.say("memory %d", len(all))
	return d.fail
}

func (d *device) SetLog(l Log) {
	if d.log.Bits != nil {
		d.log.Bits[0]++
	}
	d.log = l
	d.say("log %d", len(l.Bits))
}

func (d *device) SetInflight(f Inflight) {
	if d.inflight.Mem != nil {
		d.inflight.Mem[0]++
	}
	d.inflight = f
	d.say("inflight %d", len(f.Mem))
}

func (d *device) Start(i int, q *Queue) error {
	if len(d.regions) == 0 || q.Size == 0 || q.Started != d.started[i] {
		d.tb.Errorf("queue %d starts: %+v, %d regions", i, *q, len(d.regions))
	}
	d.started[i] = true
	d.say("start %d %v", i, q.Started)
	if d.fail != nil && !q.Started {
		d.started[i] = false
	}
	return d.fail
}

func (d *device) Stop(i int) uint16 {
	if !d.started[i] {
		d.tb.Errorf("queue %d stops, which does not run", i)
	}
	d.started[i] = false
	d.say("stop %d", i)
	return d.base
}

func (d *device) Enabled(i int, q *Queue) { d.say("enabled %d %v", i, q.Enabled) }
func (d *device) Notify(i int, q *Queue) {
	d.say("notify %d %v %v %v", i, q.Kick >= 0, q.Call >= 0, q.Err >= 0)
}
func (d *device) SetMTU(mtu int)   { d.say("mtu %d", mtu) }
func (d *device) Unknown(r uint32) { d.say("unknown %d", r) }

// frontEnd is the other side.
type frontEnd struct {
	tb   testing.TB
	fd   int
	back int
	dev  *device
	s    *Session
}

// config of most tests.
func config() Config {
	return Config{Features: Features, MAC: [6]byte{2, 1, 2, 3, 4, 5}, MTU: 1500}
}

// connect begins a session. After the test, all of it has been given back.
func connect(tb testing.TB, c Config) *frontEnd {
	tb.Helper()
	before := openFiles(tb)
	f := begin(tb, c)
	tb.Cleanup(func() {
		f.end()
		f.s.config.Remains.settled(tb, 0)
		if after := openFiles(tb); after != before {
			tb.Errorf("%d descriptors are open, %d were before", after, before)
		}
		if d := f.dev; len(d.regions) > 0 || d.log.Bits != nil || d.inflight.Mem != nil || d.started != [MaxQueues]bool{} {
			tb.Errorf("left over: %+v", d)
		}
	})
	return f
}

// begin is connect for who looks after the end.
func begin(tb testing.TB, c Config) *frontEnd {
	tb.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		tb.Fatal(err)
	}
	f := &frontEnd{tb: tb, fd: p[0], back: p[1], dev: &device{tb: tb}}
	f.s = New(int32(p[1]), c, f.dev)
	f.dev.s = f.s
	return f
}

// end ends the session.
func (f *frontEnd) end() {
	f.s.Close()
	unix.Close(f.fd)
	unix.Close(f.back)
}

func openFiles(tb testing.TB) int {
	tb.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(e)
}

// write writes a message, whose header may lie.
func (f *frontEnd) write(request, flags uint32, payload []byte, fds ...int) {
	f.tb.Helper()
	b := binary.NativeEndian.AppendUint32(nil, request)
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(payload)))
	f.raw(append(b, payload...), fds...)
}

func (f *frontEnd) raw(b []byte, fds ...int) {
	f.tb.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(f.fd, b, oob, nil, 0); err != nil {
		f.tb.Fatal(err)
	}
}

// tell sends a message that has to be accepted.
func (f *frontEnd) tell(request uint32, payload []byte, fds ...int) {
	f.tb.Helper()
	acknowledged := f.s.protocol&protoReplyAck != 0
	f.write(request, flagVersion|flagNeedReply, payload, fds...)
	if more, err := f.s.Receive(); more || err != nil {
		f.tb.Fatalf("request %d: %v, %v", request, more, err)
	}
	if acknowledged {
		if r := f.answer(request); u64(r) != 0 {
			f.tb.Fatalf("request %d: %d", request, u64(r))
		}
	}
}

// refused sends a message that is answered by an error.
func (f *frontEnd) refused(request uint32, payload []byte, fds ...int) {
	f.tb.Helper()
	f.write(request, flagVersion|flagNeedReply, payload, fds...)
	if more, err := f.s.Receive(); more || err != nil {
		f.tb.Fatalf("request %d: %v, %v", request, more, err)
	}
	if r := f.answer(request); u64(r) == 0 {
		f.tb.Fatalf("request %d: accepted", request)
	}
}

// ends sends a message that ends the connection, for that reason.
func (f *frontEnd) ends(why string, request uint32, payload []byte, fds ...int) {
	f.tb.Helper()
	f.write(request, flagVersion, payload, fds...)
	f.over(why)
}

func (f *frontEnd) over(why string) {
	f.tb.Helper()
	_, err := f.s.Receive()
	if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), why) {
		f.tb.Fatalf("%v, want %q", err, why)
	}
	if _, again := f.s.Receive(); again != err {
		f.tb.Fatalf("afterwards: %v", again)
	}
}

// ask sends a message that has an answer of its own.
func (f *frontEnd) ask(request uint32, payload []byte, fds ...int) []byte {
	f.tb.Helper()
	f.write(request, flagVersion, payload, fds...)
	if more, err := f.s.Receive(); more || err != nil {
		f.tb.Fatalf("request %d: %v, %v", request, more, err)
	}
	return f.answer(request)
}

func (f *frontEnd) answer(request uint32) []byte {
	f.tb.Helper()
	b := make([]byte, 1024)
	n, err := unix.Read(f.fd, b)
	if err != nil || n < headerLen || u32(b) != request || u32(b[4:]) != flagVersion|flagReply || int(u32(b[8:])) != n-headerLen {
		f.tb.Fatalf("answer to %d: %v, %x", request, err, b[:max(n, 0)])
	}
	return b[headerLen:n]
}

// silent checks that nothing was answered.
func (f *frontEnd) silent() {
	f.tb.Helper()
	if n, err := unix.Read(f.fd, make([]byte, 64)); err != unix.EAGAIN {
		f.tb.Fatalf("%d bytes, %v", n, err)
	}
}

// said checks what the device was told since the last time.
func (f *frontEnd) said(want ...string) {
	f.tb.Helper()
	if !slices.Equal(f.dev.said, want) {
		f.tb.Errorf("told %q, want %q", f.dev.said, want)
	}
	f.dev.said = nil
}

func words(v ...uint32) (b []byte) {
	for _, w := range v {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

func longs(v ...uint64) (b []byte) {
	for _, w := range v {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	return b
}

// owned is a descriptor that the test closes.
func owned(tb testing.TB, fd int, err error) int {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

func memfd(tb testing.TB, size int64) int {
	tb.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	fd = owned(tb, fd, err)
	if err := unix.Ftruncate(fd, size); err != nil {
		tb.Fatal(err)
	}
	return fd
}

func event(tb testing.TB) int {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	return owned(tb, fd, err)
}

// negotiate does what comes first: all features, acknowledged requests.
func (f *frontEnd) negotiate() {
	f.tb.Helper()
	f.tell(setProtocolFeatures, longs(f.s.offeredProtocol()))
	f.tell(setFeatures, longs(f.s.offered()))
	f.dev.said = nil
}

// table is a memory table of one region of 1 MiB at 1 MiB.
func table() []byte { return slices.Concat(words(1, 0), longs(1<<20, 1<<20, 1<<30, 0)) }

// running begins a session with a ring that runs.
func running(t *testing.T) *frontEnd {
	t.Helper()
	f := connect(t, config())
	f.negotiate()
	f.tell(setMemTable, table(), memfd(t, 1<<20))
	f.tell(setVringNum, words(1, 256))
	f.tell(setVringBase, words(1, 7))
	f.tell(setVringAddr, slices.Concat(words(1, 0), longs(1<<30, 1<<30+8192, 1<<30+4096, 0)))
	f.tell(setVringCall, longs(1), event(t))
	f.said("memory 1", "notify 1 false true false")
	f.tell(setVringKick, longs(1), event(t))
	f.said("notify 1 true true false", "start 1 false")
	f.tell(setVringEnable, words(1, 1))
	f.said("enabled 1 true")
	return f
}

// within fails a test that takes longer than nothing can: something blocks.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan bool)
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("blocked")
	}
}
