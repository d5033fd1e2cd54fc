// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

func captureFile(t *testing.T) (string, int32) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "capture")
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return path, int32(fd)
}

func TestCapture(t *testing.T) {
	path, fd := captureFile(t)
	c := NewCapture(CaptureTo{FD: fd, Mark: -1, Room: -1})
	now := time.Unix(1700000000, 123456000)
	var want [][]byte
	plain, super := random(1514), tcpSuper(true, packet.ACK, 0, random(30000), 1448)
	one := udpSuper(false, random(99), 1)
	one.o.GSOType = packet.GSONone
	for range 20 { // more than the buffer holds
		c.Frame(now, nil, plain[:54], plain[54:])
		c.Frame(now, &super.o, super.headers, super.payload)
		c.Frame(now, &one.o, one.headers, one.payload)
		want = append(append(want, plain), cutAll(t, super, 65520)...)
		want = append(want, nil)
	}
	odd := super.o
	odd.Flags = 0 // cannot be cut
	c.Frame(now, &odd, super.headers, super.payload)
	want = append(want, append(super.headers, super.payload...))
	if c.Close(); c.Warning() != "" {
		t.Fatal("news")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil || r.LinkType() != layers.LinkTypeEthernet {
		t.Fatalf("%v, link type %v", err, r.LinkType())
	}
	for i := range want {
		data, info, err := r.ReadPacketData()
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if !info.Timestamp.Equal(now) || info.Length != len(data) {
			t.Fatalf("frame %d: %+v", i, info)
		}
		if want[i] == nil && !checksumValid(data) || want[i] != nil && !bytes.Equal(data, want[i]) {
			t.Fatalf("frame %d of %d differs", i, len(want))
		}
	}
	if _, _, err := r.ReadPacketData(); err != io.EOF {
		t.Error(err)
	}
}

// sink is the far end of a pipe, of one page, that a capture writes to.
func sink(t *testing.T) (read int, write int32) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]) })
	return p[0], int32(p[1])
}

// drain reads all that is there.
func drain(fd int) (all []byte) {
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, b)
		if err != nil || n <= 0 {
			return all
		}
		all = append(all, b[:n]...)
	}
}

// readRecords checks that b is a whole pcap file and returns its frames.
func readRecords(t *testing.T, b []byte) (frames [][]byte) {
	t.Helper()
	r, err := pcapgo.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, _, err := r.ReadPacketData()
		if err == io.EOF {
			return frames
		}
		if err != nil {
			t.Fatalf("after %d frames: %v", len(frames), err)
		}
		frames = append(frames, data)
	}
}

// TestCaptureStalls: nobody reads the pipe for a while. No write waits, frames are
// left out whole, and both is told once.
func TestCaptureStalls(t *testing.T) {
	r, w := sink(t)
	c := NewCapture(CaptureTo{FD: w, Mark: -1, Room: -1})
	now := time.Unix(1700000000, 0)
	var got []byte
	var news []string
	const frames, size = 2000, 997
	for i := range frames {
		frame := make([]byte, size)
		frame[0], frame[1] = byte(i), byte(i>>8)
		c.Frame(now.Add(time.Duration(i)*time.Millisecond), nil, frame[:54], frame[54:])
		c.Flush()
		if n := c.Warning(); n != "" {
			news = append(news, n)
		}
		if i > 1000 {
			got = append(got, drain(r)...)
		}
	}
	for range 300 {
		c.Flush()
		got = append(got, drain(r)...)
		if n := c.Warning(); n != "" {
			news = append(news, n)
		}
	}
	c.Close()
	got = append(got, drain(r)...)
	records := readRecords(t, got)
	last := -1
	for _, f := range records {
		if n := int(f[0]) | int(f[1])<<8; len(f) != size || n <= last {
			t.Fatalf("frame %d of %d bytes behind %d", n, len(f), last)
		} else {
			last = n
		}
	}
	if last != frames-1 || len(records) >= frames-500 {
		t.Errorf("%d frames, the last is %d", len(records), last)
	}
	want := []string{"packet capture: frames are left out, since they are not read as fast as they come",
		fmt.Sprintf("packet capture: goes on, %d frames were left out", frames-len(records))}
	if !slices.Equal(news, want) {
		t.Errorf("news %q, want %q", news, want)
	}
}

// TestCaptureNobodyReads: the far end is closed. That ends the capture, once.
func TestCaptureNobodyReads(t *testing.T) {
	r, w := sink(t)
	c := NewCapture(CaptureTo{FD: w, Mark: -1, Room: -1})
	unix.Close(r)
	for range 1000 {
		c.Frame(time.Now(), nil, make([]byte, 1000), nil)
		c.Flush()
	}
	c.Close()
	if n := c.Warning(); n != "packet capture ended: broken pipe" {
		t.Errorf("news %q", n)
	}
	if _, err := unix.FcntlInt(uintptr(w), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the pipe is still open: %v", err)
	}
}

func TestCaptureFullDisk(t *testing.T) {
	fd, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no /dev/full:", err)
	}
	c := NewCapture(CaptureTo{FD: int32(fd), Mark: -1, Room: -1})
	news := 0
	for range 1000 {
		c.Frame(time.Now(), nil, make([]byte, 1000), nil)
		c.Flush()
		if n := c.Warning(); strings.Contains(n, "no space left") {
			news++
		} else if n != "" {
			t.Error(n)
		}
	}
	if news != 1 || c.ended {
		t.Errorf("told %d times, ended %v", news, c.ended)
	}
}

// smallDisk makes a file system of a few pages.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("no file system can be mounted:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestCaptureRoomAgain: the disk is full for a while, in the middle of a record.
// What is marked as whole is whole at any time, and so is the file in the end.
func TestCaptureRoomAgain(t *testing.T) {
	dir := smallDisk(t, "128k")
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "capture")
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mark, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mark)
	c := NewCapture(CaptureTo{FD: int32(fd), Mark: int32(mark), Room: -1})
	whole := 0
	check := func() {
		t.Helper()
		var b [8]byte
		if n, err := unix.Read(mark, b[:]); err == nil && n == 8 {
			whole += int(binary.NativeEndian.Uint64(b[:]))
		}
		all, err := os.ReadFile(path)
		if err != nil || len(all) < whole || len(all)-whole > captureSize {
			t.Fatalf("%d bytes, of which %d are whole, %v", len(all), whole, err)
		}
		if whole > 0 {
			readRecords(t, all[:whole])
		}
	}
	var news []string
	for i := range 120 {
		c.Frame(time.Unix(1700000000+int64(i), 0), nil, make([]byte, 997), nil)
		c.Flush()
		if n := c.Warning(); n != "" {
			news = append(news, n)
		}
		check()
		if i == 100 {
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Close()
	check()
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(readRecords(t, all)); n != 120 || len(all) != whole {
		t.Errorf("%d records in %d bytes, marked are %d", n, len(all), whole)
	}
	if len(news) != 2 || !strings.Contains(news[0], "no space left") || !strings.Contains(news[1], "goes on, 0 frames") {
		t.Errorf("news %q", news)
	}
}

// TestCaptureSize: the file never has more than it may, ends with a whole record,
// and that is told.
func TestCaptureSize(t *testing.T) {
	for _, room := range []int64{0, 24, 100, 4096, 65000, 300000} {
		path, fd := captureFile(t)
		c := NewCapture(CaptureTo{FD: fd, Mark: -1, Room: room})
		super := tcpSuper(true, packet.ACK, 0, random(30000), 1448)
		for i := range 30 {
			c.Frame(time.Now(), &super.o, super.headers, super.payload)
			if i%3 == 0 {
				c.Flush()
			}
		}
		c.Flush()
		if n := c.Warning(); n != "packet capture ended: its size is reached (--pcap-size)" || !c.ended {
			t.Errorf("room for %d bytes: news %q", room, n)
		}
		all, err := os.ReadFile(path)
		if err != nil || int64(len(all)) > room || room > 4096 && int64(len(all)) < room-2000 {
			t.Errorf("room for %d bytes, %d written, %v", room, len(all), err)
		}
		if room >= pcapHeader {
			readRecords(t, all)
		}
	}
}

func TestCaptureAllocates(t *testing.T) {
	_, fd := captureFile(t)
	c := NewCapture(CaptureTo{FD: fd, Mark: -1, Room: -1})
	defer c.Close()
	super := tcpSuper(true, packet.ACK, 0, random(30000), 1448)
	if n := testing.AllocsPerRun(100, func() {
		c.Frame(time.Now(), &super.o, super.headers, super.payload)
		c.Frame(time.Now(), nil, super.payload, nil)
		c.Flush()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
