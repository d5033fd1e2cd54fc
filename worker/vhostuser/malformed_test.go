// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

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
