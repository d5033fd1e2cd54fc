// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
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
	c := NewCapture(fd, false)
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
	if err := c.Close(); err != nil {
		t.Fatal(err)
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

func TestCaptureFails(t *testing.T) {
	fd, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no /dev/full:", err)
	}
	c := NewCapture(int32(fd), false)
	for range 1000 {
		c.Frame(time.Now(), nil, make([]byte, 1000), nil)
	}
	if err := c.Close(); err != unix.ENOSPC {
		t.Errorf("error %v, expected %v", err, unix.ENOSPC)
	}
}

func TestCaptureAllocates(t *testing.T) {
	_, fd := captureFile(t)
	c := NewCapture(fd, false)
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
