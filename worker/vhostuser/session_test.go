// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/vhost"
)

// TestStart is a connection as monitors begin it, from the first message to a ring
// that runs, stops and runs again.
func TestStart(t *testing.T) {
	f := connect(t, config())
	if got := u64(f.ask(getFeatures, nil)); got != Features {
		t.Errorf("features %#x", got)
	}
	if got := u64(f.ask(getProtocolFeatures, nil)); got != f.s.offeredProtocol() || got&protoInflight != 0 {
		t.Errorf("protocol features %#x", got)
	}
	// The message that asks for acknowledgements is not acknowledged yet.
	f.write(setProtocolFeatures, flagVersion|flagNeedReply, longs(f.s.offeredProtocol()))
	if _, err := f.s.Receive(); err != nil {
		t.Fatal(err)
	}
	f.silent()
	if got := u64(f.ask(getQueueNum, nil)); got != MaxPairs {
		t.Errorf("%d pairs", got)
	}
	f.tell(setOwner, nil)
	f.tell(resetOwner, nil)
	f.tell(sendRARP, longs(0x060504030201))
	f.tell(setFeatures, longs(Features&^FeatureLogAll))
	if f.dev.features != Features&^FeatureLogAll {
		t.Errorf("features %#x", f.dev.features)
	}
	f.said()
	first, second := memfd(t, 1<<20), memfd(t, 8<<20)
	f.tell(setMemTable, slices.Concat(words(2, 0),
		longs(0, 1<<20, 1<<40, 0),
		longs(1<<32, 4<<20, 1<<41, 4<<20)), first, second)
	f.said("memory 2")
	if r := f.dev.regions[1]; r.Guest != 1<<32 || r.User != 1<<41 || len(r.Mem) != 4<<20 || cap(r.Mem) != 4<<20 {
		t.Errorf("region %#x, %#x, %#x bytes", r.Guest, r.User, len(r.Mem))
	}
	for i := range uint32(2) {
		f.tell(setVringNum, words(i, 1024))
		f.tell(setVringBase, words(i, 65535))
		f.tell(setVringAddr, slices.Concat(words(i, 1), longs(1<<40, 1<<40+1<<16, 1<<40+1<<15, 12345)))
		f.tell(setVringKick, longs(uint64(i)), event(t))
		f.tell(setVringCall, longs(uint64(i)), event(t))
		f.tell(setVringErr, longs(uint64(i)|noFD))
		f.tell(setVringEnable, words(i, 1))
		f.tell(setVringEnable, words(i, 1)) // once more is nothing
	}
	f.said("notify 0 true false false", "start 0 false", "notify 0 true true false", "notify 0 true true false", "enabled 0 true",
		"notify 1 true false false", "start 1 false", "notify 1 true true false", "notify 1 true true false", "enabled 1 true")
	q := f.s.Queue(1)
	want := Queue{Size: 1024, Desc: 1 << 40, Used: 1<<40 + 1<<16, Avail: 1<<40 + 1<<15, LogUsed: true, LogAddr: 12345,
		Base: 65535, Kick: q.Kick, Call: q.Call, Err: none, Started: true, Enabled: true}
	if *q != want || q.Kick < 0 || q.Call < 0 {
		t.Errorf("queue 1: %+v", *q)
	}
	f.dev.base = 77
	if got := f.ask(getVringBase, words(1, 0)); !slices.Equal(got, words(1, 77)) {
		t.Errorf("base %x", got)
	}
	f.said("stop 1", "notify 1 false true false")
	if got := f.ask(getVringBase, words(9, 0)); !slices.Equal(got, words(9, 0)) {
		t.Errorf("base of a queue that never ran: %x", got)
	}
	f.said()
	f.tell(setVringKick, longs(1), event(t))
	f.said("notify 1 true true false", "start 1 false")
	unix.Shutdown(f.fd, unix.SHUT_RDWR)
	if _, err := f.s.Receive(); !errors.Is(err, ErrClosed) || errors.Is(err, ErrProtocol) {
		t.Errorf("at the end: %v", err)
	}
	f.said()
	f.s.Close()
	f.said("stop 0", "notify 0 false true false", "enabled 0 false", "notify 0 false false false",
		"stop 1", "notify 1 false true false", "enabled 1 false", "notify 1 false false false",
		"log 0", "inflight 0", "memory 0")
}

// TestOrders: a ring starts when all is known of it, in whatever order it comes.
func TestOrders(t *testing.T) {
	f := connect(t, config())
	f.negotiate()
	f.tell(setVringKick, longs(3|noFD))
	f.tell(setMemTable, table(), memfd(t, 1<<20))
	f.tell(setVringAddr, slices.Concat(words(3, 0), longs(1<<30, 1<<30+8192, 1<<30+4096, 0)))
	f.said("notify 3 false false false", "memory 1")
	f.tell(setVringNum, words(3, 128))
	f.said("start 3 false")

	g := connect(t, config())
	g.negotiate()
	g.tell(addMemReg, slices.Concat(longs(0), table()[8:]), memfd(t, 1<<20))
	g.tell(setVringNum, words(0, 1))
	g.tell(setVringKick, longs(0), event(t))
	g.said("memory 1", "notify 0 true false false")
	g.tell(setVringAddr, slices.Concat(words(0, 0), longs(1<<30, 1<<30+8192, 1<<30+4096, 0)))
	g.said("start 0 false")
}

// TestNoProtocolFeatures: the oldest monitors know none; their rings are enabled
// from the start, and nothing is acknowledged.
func TestNoProtocolFeatures(t *testing.T) {
	f := connect(t, config())
	f.write(setFeatures, flagVersion|flagNeedReply, longs(FeatureMrgRxBuf))
	if _, err := f.s.Receive(); err != nil {
		t.Fatal(err)
	}
	f.silent()
	if len(f.dev.said) != MaxQueues || !f.s.Queue(0).Enabled || !f.s.Queue(31).Enabled {
		t.Errorf("told %q", f.dev.said)
	}
	f.dev.said = nil
	f.write(setMemTable, flagVersion, table(), memfd(t, 1<<20))
	f.write(getMaxMemSlots, flagVersion, nil) // needs a protocol feature
	f.write(getMaxMemSlots, flagVersion, nil)
	f.write(21, flagVersion, longs(1))
	f.write(4000, flagVersion, nil)
	f.write(4001, flagVersion, nil)
	if _, err := f.s.Receive(); err != nil {
		t.Fatal(err)
	}
	f.silent()
	f.said("memory 1", "unknown 36", "unknown 21", "unknown 4000")
}

// TestUnknown: what is not known is refused where an answer is wanted, and the
// connection goes on.
func TestUnknown(t *testing.T) {
	f := connect(t, config())
	f.negotiate()
	f.refused(0, nil)
	f.refused(42, longs(0), event(t)) // device state
	f.refused(22, make([]byte, 40))   // IOTLB
	f.refused(1<<31, make([]byte, maxPayload))
	f.refused(setConfig, words(0, 0, 0))
	f.refused(netSetMTU, longs(67))
	f.refused(netSetMTU, longs(65536))
	f.said("unknown 0", "unknown 42", "unknown 22", "unknown 2147483648")
	f.tell(netSetMTU, longs(9000))
	f.said("mtu 9000")
	f.tell(setLogFD, nil, event(t))
}

// TestPieces: messages come in any pieces, several in one; descriptors stay with
// theirs.
func TestPieces(t *testing.T) {
	f := connect(t, config())
	f.negotiate()
	b := slices.Concat(words(setMemTable, flagVersion, 40), table())
	f.raw(b[:1], memfd(t, 1<<20))
	for i := range b[1:] {
		if more, err := f.s.Receive(); more || err != nil {
			t.Fatal(i, more, err)
		}
		f.said()
		f.raw(b[1+i : 2+i])
	}
	if _, err := f.s.Receive(); err != nil {
		t.Fatal(err)
	}
	f.said("memory 1")

	// More than is taken at a time.
	one := slices.Concat(words(setVringEnable, flagVersion, 8), words(2, 1), words(setVringEnable, flagVersion, 8), words(2, 0))
	f.raw(slices.Repeat(one, maxMessages))
	for n := range 2 {
		if more, err := f.s.Receive(); more != (n == 0) || err != nil || len(f.dev.said) != maxMessages {
			t.Fatal(more, err, len(f.dev.said))
		}
		f.dev.said = nil
	}
	if more, err := f.s.Receive(); more || err != nil || f.dev.said != nil {
		t.Error(more, err, f.dev.said)
	}
}

// TestChanges: what a monitor changes while a ring runs.
func TestChanges(t *testing.T) {
	f := running(t)
	f.tell(setVringNum, words(1, 256))
	f.tell(setVringAddr, slices.Concat(words(1, 1), longs(1<<30, 1<<30+8192, 1<<30+4096, 5)))
	f.said("start 1 true")
	f.tell(setFeatures, longs(f.s.features&^FeatureLogAll))
	f.tell(setFeatures, longs(f.s.features|FeatureLogAll))
	f.tell(setVringKick, longs(1), event(t))
	f.tell(setVringCall, longs(1|noFD))
	f.tell(setVringErr, longs(1), event(t))
	f.said("notify 1 true true false", "notify 1 true false false", "notify 1 true false true")
	f.tell(setMemTable, slices.Concat(words(2, 0), table()[8:], longs(2<<20, 4096, 2<<30, 4096)), memfd(t, 1<<20), memfd(t, 8192))
	f.said("memory 2")
	f.tell(setVringEnable, words(1, 0))
	f.said("enabled 1 false")
	f.tell(setVringEnable, words(1, 1))
	f.dev.said = nil

	f.tell(resetDevice, nil)
	f.said("enabled 1 false", "stop 1", "notify 1 false false true")
	if q := f.s.Queue(1); q.Size != 0 || q.Base != 0 || q.Err < 0 || len(f.dev.regions) != 2 || f.dev.features != 0 {
		t.Errorf("after a reset: %+v, %d regions, features %#x", *q, len(f.dev.regions), f.dev.features)
	}
	f.tell(setFeatures, longs(f.s.offered()&^FeatureEventIdx)) // others than before
}

// TestStatus: what is set is shown; zero is a reset.
func TestStatus(t *testing.T) {
	f := running(t)
	f.tell(setStatus, longs(0)) // it was
	f.said()
	f.tell(setStatus, longs(15))
	if got := u64(f.ask(getStatus, nil)); got != 15 {
		t.Errorf("status %d", got)
	}
	f.said()
	f.tell(setStatus, longs(0))
	f.said("stop 1", "notify 1 false true false")
	if got := u64(f.ask(getStatus, nil)); got != 0 || !f.s.Queue(1).Enabled {
		t.Errorf("status %d, %+v", got, *f.s.Queue(1))
	}
	f.ends("status 0x100", setStatus, longs(256))
}

// TestSlots: regions come and go while rings run.
func TestSlots(t *testing.T) {
	f := running(t)
	if got := u64(f.ask(getMaxMemSlots, nil)); got != maxSlots {
		t.Errorf("%d slots", got)
	}
	file := memfd(t, 4<<20)
	more := func(n uint64) []byte { return slices.Concat(longs(0), longs(n<<20, 4096, n<<31, n*4096)) }
	for n := uint64(2); n <= maxSlots; n++ {
		f.tell(addMemReg, more(n), file)
	}
	f.dev.said = nil
	f.tell(remMemReg, more(7))
	f.tell(remMemReg, more(2), file) // as older monitors do
	f.said("memory 508", "memory 507")
	if slices.ContainsFunc(f.dev.regions, func(r vhost.Region) bool { return r.Guest == 7<<20 || r.Guest == 2<<20 }) {
		t.Error("a region that is gone")
	}
	f.tell(addMemReg, more(7), file)
	f.tell(addMemReg, more(2), file)
	f.ends("more than 509 regions", addMemReg, more(510), file)
}

// TestLog: the log of pages is mapped, and another takes its place.
func TestLog(t *testing.T) {
	f := running(t)
	file := memfd(t, 16384)
	if got := u64(f.ask(setLogBase, longs(4096, 8192), file)); got != 0 {
		t.Errorf("answer %d", got)
	}
	f.dev.log.Bits[4095] = 1
	var b [1]byte
	if _, err := unix.Pread(file, b[:], 8192+4095); err != nil || b[0] != 1 {
		t.Errorf("not shared: %v, %v", b, err)
	}
	if got := u64(f.ask(setLogBase, longs(100, 0), file)); got != 0 || len(f.dev.log.Bits) != 100 {
		t.Errorf("answer %d, %d bytes", got, len(f.dev.log.Bits))
	}
	f.said("log 4096", "log 100")
	f.ends("bytes at", setLogBase, longs(100, 1), file)
}

func inflightPayload(size uint64, queues, ring uint16) []byte {
	return binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(longs(size, 0), queues), ring)
}

// TestInflight: who makes the memory answers; it is mapped when it comes back.
func TestInflight(t *testing.T) {
	c := config()
	var asked []int
	var fail error
	c.NewInflight = func(bytes, queues, ring, payload int) error {
		asked = []int{bytes, queues, ring, payload}
		return fail
	}
	f := connect(t, c)
	f.negotiate()
	f.write(getInflightFD, flagVersion|flagNeedReply, inflightPayload(0, 4, 1024))
	if _, err := f.s.Receive(); err != nil {
		t.Fatal(err)
	}
	f.silent()
	if !slices.Equal(asked, []int{65792, 4, 1024, 20}) {
		t.Errorf("asked %v", asked)
	}
	size := uint64(4 * vhost.InflightSize(1024))
	f.tell(setInflightFD, append(inflightPayload(size, 4, 1024), 0, 0, 0, 0), memfd(t, int64(size)))
	if in := &f.dev.inflight; in.Queue(4) != nil || len(in.Queue(3)) != vhost.InflightSize(1024) || &in.Queue(3)[0] != &in.Mem[3*vhost.InflightSize(1024)] {
		t.Errorf("parts of %d bytes", len(in.Mem))
	}
	f.tell(setInflightFD, inflightPayload(size, 4, 1024), memfd(t, int64(size)))
	f.said("inflight 65792", "inflight 65792")
	fail = errors.New("the broker is gone")
	f.ends("the broker is gone (in GET_INFLIGHT_FD)", getInflightFD, inflightPayload(0, 4, 1024))
	if (&Inflight{Mem: make([]byte, 100), Queues: 2, Size: 1}).Queue(1) != nil {
		t.Error("a part beyond the end")
	}
}

// TestConfigSpace: parts of the configuration are read, beyond it nothing.
func TestConfigSpace(t *testing.T) {
	f := connect(t, config())
	f.negotiate()
	part := func(offset, size uint32) []byte {
		return f.ask(getConfig, append(words(offset, size, 0), make([]byte, size)...))
	}
	want := []byte{2, 1, 2, 3, 4, 5, 1, 0, 16, 0, 0xdc, 5, 0xff, 0xff, 0xff, 0xff, 0xff}
	if got := part(0, 60); !slices.Equal(got, slices.Concat(words(0, 60, 0), want, make([]byte, 60-len(want)))) {
		t.Errorf("%x", got)
	}
	if got := part(10, 2); !slices.Equal(got[12:], want[10:12]) {
		t.Errorf("%x", got)
	}
	if got := part(256, 0); len(got) != 12 {
		t.Errorf("%x", got)
	}
	for _, beyond := range [][2]uint32{{0, 257}, {250, 7}, {257, 0}} {
		if beyond[1] > configLen {
			continue
		}
		if got := part(beyond[0], beyond[1]); len(got) != 0 {
			t.Errorf("%v: %x", beyond, got)
		}
	}
	if got := f.ask(getConfig, words(0, 4, 0)); len(got) != 0 { // no room for the answer
		t.Errorf("%x", got)
	}
	if got := f.ask(getConfig, words(1<<31, 1<<31, 0)); len(got) != 0 {
		t.Errorf("%x", got)
	}

	plain := connect(t, Config{Features: Features})
	if got := u64(plain.ask(getFeatures, nil)); got != Features&^(FeatureMAC|FeatureMTU) {
		t.Errorf("features without an address and an MTU: %#x", got)
	}
}

// slow is a device that takes long for what costs.
type slow struct{ *device }

func (s slow) SetMTU(mtu int) {
	time.Sleep(2 * maxTime)
	s.device.SetMTU(mtu)
}

// TestCostlyMessages: messages that take long are taken one by one, so that traffic goes on.
func TestCostlyMessages(t *testing.T) {
	f := connect(t, config())
	f.negotiate()
	f.s.dev = slow{f.dev}
	const count = 5
	for n := range count {
		f.write(netSetMTU, flagVersion, longs(uint64(1000+n)))
	}
	for n := range count {
		if more, err := f.s.Receive(); more != (n < count-1) || err != nil {
			t.Fatal(n, more, err)
		}
		f.said(fmt.Sprint("mtu ", 1000+n))
	}
}
