// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

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
	for range 2 {
		if more, err := f.s.Receive(); !more || err != nil || len(f.dev.said) != maxMessages {
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

// TestMalformed: each of these ends the connection and says why.
func TestMalformed(t *testing.T) {
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	dir = owned(t, dir, err)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	file = owned(t, file, err)
	mem := memfd(t, 1<<20)
	ro, err := unix.Open("/proc/self/fd/"+strconv.Itoa(mem), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	ro = owned(t, ro, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	owned(t, pair[1], nil)
	socket := owned(t, pair[0], nil)
	one := func(r ...uint64) []byte { return slices.Concat(words(1, 0), longs(r...)) }
	add := func(r ...uint64) []byte { return slices.Concat(longs(0), longs(r...)) }
	manyFDs := slices.Repeat([]int{mem}, maxFDs+1)
	all := uint64(1) << 63
	for _, tt := range []struct {
		name, why string
		request   uint32
		payload   []byte
		fds       []int
	}{
		{"features that were not offered", "not offered", setFeatures, longs(1 << 34), nil},
		{"other features while a ring runs", "while rings run", setFeatures, longs(FeatureProtocol), nil},
		{"protocol features that were not offered", "not offered", setProtocolFeatures, longs(1 << 5), nil},
		{"too short", "payload of 7 bytes (in SET_FEATURES)", setFeatures, make([]byte, 7), nil},
		{"too long", "payload of 9 bytes", setFeatures, make([]byte, 9), nil},
		{"a descriptor that nobody wants", "at most 0 belong", setFeatures, longs(0), []int{mem}},
		{"two descriptors", "at most 1 belong", setVringKick, longs(0), []int{mem, mem}},
		{"33 descriptors", "at most 32", setMemTable, table(), manyFDs},

		{"no region", "payload of 8 bytes", setMemTable, words(0, 0), nil},
		{"more regions than said", "1 regions", setMemTable, append(table(), table()[8:]...), []int{mem}},
		{"fewer descriptors", "with 0 descriptors", setMemTable, table(), nil},
		{"many regions", "4294967295 regions", setMemTable, append(words(1<<32-1, 0), table()[8:]...), []int{mem}},
		{"overlapping regions", "overlap", setMemTable, slices.Concat(words(2, 0), table()[8:], longs(2<<20-4096, 8192, 1<<33, 0)), []int{mem, mem}},
		{"overlapping for the monitor", "overlap", setMemTable, slices.Concat(words(2, 0), table()[8:], longs(1<<35, 8192, 1<<30+1<<20-4096, 0)), []int{mem, mem}},
		{"a region within another", "overlap", addMemReg, add(0, 8<<20, 1<<40, 0), []int{mem}},
		{"an empty region", "empty", setMemTable, one(0, 0, 0, 0), []int{mem}},
		{"beyond the last guest address", "last address", setMemTable, one(all, all+4096, 0, 0), []int{mem}},
		{"beyond the last address", "last address", setMemTable, one(0, all+4096, all, 0), []int{mem}},
		{"no whole pages", "whole pages", setMemTable, one(0, 4095, 0, 0), []int{mem}},
		{"an odd address", "whole pages", setMemTable, one(1, 4096, 0, 0), []int{mem}},
		{"an odd offset", "whole pages", setMemTable, one(0, 4096, 0, 1), []int{mem}},
		{"beyond the file", "of a file of 1048576 bytes", setMemTable, one(0, 1<<20, 0, 4096), []int{mem}},
		{"far beyond the file", "of a file of", setMemTable, one(0, 4096, 0, ^uint64(4095)), []int{mem}},
		{"offset and size overflow", "of a file of", setMemTable, one(0, all, 0, all), []int{mem}},
		{"memory that cannot be written to", "cannot be mapped: permission denied", setMemTable, one(0, 4096, 0, 0), []int{ro}},
		{"a directory", "this is none", setMemTable, table(), []int{dir}},
		{"a file of a disk", "this is none", setMemTable, table(), []int{file}},
		{"a socket", "this is none", setMemTable, table(), []int{socket}},
		{"an event as memory", "this is none", setMemTable, table(), []int{event(t)}},
		{"a slot without descriptor", "no descriptor", addMemReg, add(0, 4096, 0, 0), nil},
		{"a slot of nothing", "empty", addMemReg, add(0, 0, 0, 0), []int{mem}},
		{"a slot that is not there", "no region", remMemReg, add(0, 4096, 0, 0), nil},
		{"a slot of nothing is removed", "empty", remMemReg, add(0, 0, 0, 0), nil},

		{"a queue too many", "queue 32", setVringNum, words(32, 256), nil},
		{"queue number of 32 bits", "queue 4294967295", setVringAddr, append(words(1<<32-1, 0), make([]byte, 32)...), nil},
		{"base of no queue", "queue 32", getVringBase, words(32, 0), nil},
		{"enabled no queue", "queue 32", setVringEnable, words(32, 0), nil},
		{"base for no queue", "queue 32", setVringBase, words(32, 0), nil},
		{"kick of no queue", "queue 0x120", setVringKick, longs(32 | noFD), nil},
		{"call of no queue", "queue 0x1ff", setVringCall, longs(255 | noFD), nil},
		{"error of no queue", "queue 0x10000000000", setVringErr, longs(1 << 40), nil},
		{"size zero", "of 0 descriptors", setVringNum, words(0, 0), nil},
		{"size no power of two", "of 255 descriptors", setVringNum, words(0, 255), nil},
		{"size too large", "of 65536 descriptors", setVringNum, words(0, 65536), nil},
		{"another size", "another size", setVringNum, words(1, 512), nil},
		{"another base", "another base", setVringBase, words(1, 1), nil},
		{"base of 17 bits", "goes on at 65536", setVringBase, words(0, 65536), nil},
		{"flags of addresses", "flags 0x2", setVringAddr, append(words(0, 2), make([]byte, 32)...), nil},
		{"addresses in no memory", "0x40100000 is in no memory", setVringAddr, slices.Concat(words(0, 0), longs(1<<30, 1<<30+1<<20, 1<<30, 0)), nil},
		{"enabled twice", "2 times", setVringEnable, words(0, 2), nil},
		{"a kick without descriptor", "0 descriptors", setVringKick, longs(0), nil},
		{"a descriptor that is not there", "1 descriptors", setVringCall, longs(noFD), []int{event(t)}},
		{"a directory to kick", "no eventfd", setVringKick, longs(0), []int{dir}},
		{"a file to call", "no eventfd", setVringCall, longs(0), []int{file}},
		{"a socket to call", "no eventfd", setVringCall, longs(0), []int{socket}},
		{"memory to tell of errors", "no eventfd", setVringErr, longs(0), []int{mem}},

		{"a log without descriptor", "no descriptor", setLogBase, longs(4096, 0), nil},
		{"a log of nothing", "memory of 0 bytes", setLogBase, longs(0, 0), []int{mem}},
		{"a log in a socket", "this is none", setLogBase, longs(4096, 0), []int{socket}},
		{"a log of 2 EiB", "of a file of", setLogBase, longs(1<<61, 0), []int{mem}},
		{"in flight while rings run", "while rings run", setInflightFD, inflightPayload(1<<20, 1, 1), []int{mem}},
		{"in flight of no queue", "0 queues", getInflightFD, inflightPayload(0, 0, 1), nil},
		{"in flight of 33 queues", "33 queues", setInflightFD, inflightPayload(0, 33, 1), []int{mem}},
		{"in flight of rings of 3", "of 3 descriptors", getInflightFD, inflightPayload(0, 1, 3), nil},
		{"in flight without descriptor", "no descriptor", setInflightFD, inflightPayload(1<<20, 1, 1), nil},
		{"in flight in too little", "100 bytes", setInflightFD, inflightPayload(100, 2, 256), []int{mem}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config()
			c.NewInflight = func(int, int, int, int) error { t.Error("asked for memory"); return nil }
			f := connect(t, c)
			f.negotiate()
			f.tell(setMemTable, table(), memfd(t, 1<<20))
			f.tell(setVringNum, words(1, 256))
			f.tell(setVringAddr, slices.Concat(words(1, 0), longs(1<<30, 1<<30+8192, 1<<30+4096, 0)))
			f.tell(setVringKick, longs(1), event(t))
			within(t, func() { f.ends(tt.why, tt.request, tt.payload, tt.fds...) })
		})
	}
	t.Run("in flight in a socket", func(t *testing.T) {
		c := config()
		c.NewInflight = func(int, int, int, int) error { return nil }
		f := connect(t, c)
		f.negotiate()
		f.ends("this is none", setInflightFD, inflightPayload(1<<20, 1, 1), socket)
	})
}

// TestHeaders: what cannot be a message.
func TestHeaders(t *testing.T) {
	for why, header := range map[string][]byte{
		"version 0":             words(getFeatures, 0, 0),
		"version 2":             words(getFeatures, 2, 0),
		"version 3":             words(getFeatures, 3|flagNeedReply, 0),
		"is a reply":            words(getFeatures, flagVersion|flagReply, 0),
		"payload of 1033":       words(getFeatures, flagVersion, 1033),
		"payload of 4294967295": words(99, flagVersion, 1<<32-1),
	} {
		f := connect(t, config())
		f.raw(header, event(t))
		f.over(why)
	}
}

// TestDeviceRefuses: the connection ends.
func TestDeviceRefuses(t *testing.T) {
	f := connect(t, config())
	f.negotiate()
	f.dev.fail = errors.New("not so many")
	f.write(setMemTable, flagVersion|flagNeedReply, table(), memfd(t, 1<<20))
	f.over("memory: not so many (in SET_MEM_TABLE)")
	f.silent()

	f = running(t)
	f.dev.fail = errors.New("no such address")
	f.ends("queue 1: no such address", setVringAddr, slices.Concat(words(1, 0), longs(1<<30, 1<<30, 1<<30, 0)))
	f.said("start 1 true", "stop 1", "notify 1 false true false")

	f = connect(t, config())
	f.negotiate()
	f.tell(addMemReg, slices.Concat(longs(0), table()[8:]), memfd(t, 1<<20))
	f.tell(setVringAddr, slices.Concat(words(0, 0), longs(1<<30, 1<<30, 1<<30, 0)))
	f.tell(setVringKick, longs(noFD))
	f.dev.fail = errors.New("odd")
	f.ends("queue 0 cannot start: odd", setVringNum, words(0, 4))
}

// TestUnread: a front end that asks and does not read ends, and blocks nobody.
func TestUnread(t *testing.T) {
	f := connect(t, config())
	within(t, func() {
		for {
			f.write(getFeatures, flagVersion, nil)
			if _, err := f.s.Receive(); err != nil {
				if !errors.Is(err, ErrProtocol) {
					t.Error(err)
				}
				return
			}
		}
	})
}

// TestGoneBeforeTheAnswer: it is no fault of the protocol.
func TestGoneBeforeTheAnswer(t *testing.T) {
	f := connect(t, config())
	f.write(getFeatures, flagVersion, nil)
	unix.Shutdown(f.fd, unix.SHUT_RDWR)
	if _, err := f.s.Receive(); !errors.Is(err, ErrClosed) || errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
	g := connect(t, config())
	g.s.fd = -1
	if _, err := g.s.Receive(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// TestDescriptorsLost: more descriptors than may be open end the connection, and
// those that came are closed.
func TestDescriptorsLost(t *testing.T) {
	f := connect(t, config())
	f.negotiate()
	fds := slices.Repeat([]int{memfd(t, 4096)}, maxFDs)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	f.write(setMemTable, flagVersion, append(words(maxFDs, 0), make([]byte, maxFDs*regionLen)...), fds...)
	tight := old
	tight.Cur = uint64(openFiles(t) + 4)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &tight); err != nil {
		t.Fatal(err)
	}
	_, err := f.s.Receive()
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
}
