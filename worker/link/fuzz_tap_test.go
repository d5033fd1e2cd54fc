// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/worker/packet"
)

// FuzzTap has a device hand over anything, and sends back what was taken, to one
// that cuts itself or does not. A frame keeps what Frame promises; what is sent
// is what came, or its segments, behind a header that describes it. A pair of
// packet sockets stands in for the device.
func FuzzTap(f *testing.F) {
	for _, frame := range fuzz.Captured("ping", "curl") {
		fuzz.Add(f, slices.Concat([]byte{0}, make([]byte, packet.OffloadSize), frame))
	}
	for i, b := range superSeeds() {
		s, _ := takeSuper(&fuzz.Source{B: b})
		var o [packet.OffloadSize]byte
		encodeOffload(o[:], &s.o)
		fuzz.Add(f, slices.Concat([]byte{byte(i)}, o[:], s.headers, s.payload[:min(len(s.payload), 5000)]))
		fuzz.Add(f, slices.Concat([]byte{0x6f}, o[:], s.headers, s.payload[:min(len(s.payload), 5000)]))
	}
	fuzz.Add(f, make([]byte, 24))
	fuzz.Add(f, append([]byte{0}, random(tapSlot)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1 || len(b) > tapSlot+1 {
			return
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		link := NewTap(int32(fds[0]), uint32(b[0])).(*tap)
		defer func() {
			if !link.closed {
				link.Close()
			}
			unix.Close(fds[1])
		}()
		raw := b[1:]
		if len(raw) == 0 {
			return
		}
		if _, err := unix.Write(fds[1], raw); err != nil {
			t.Fatal(err)
		}
		batch := NewBatch()
		if more, err := link.Receive(batch); more || err != nil {
			t.Fatal(more, err)
		}
		if link.FD() != int32(fds[0]) || !link.CanSend() || link.WantWrite() || !link.Writable() || link.Flush() != nil {
			t.Fatal("the link is not as it was")
		}
		c := link.Counters()
		if len(batch.Frames) == 0 {
			if c.Malformed != 1 {
				t.Fatalf("%+v", c)
			}
			return
		}
		frame := &batch.Frames[0]
		checkFrame(t, frame, raw)
		ok := link.Send(&frame.Offload, frame.Data, nil)
		checkSent(t, fds[1], link, frame, ok)
		link.Close()
		if _, err := link.Receive(batch); !errors.Is(err, ErrClosed) || link.Send(nil, raw, nil) || link.Flush() == nil || link.CanSend() {
			t.Fatalf("a closed link: %v", err)
		}
	})
}

// checkFrame verifies what Frame promises.
func checkFrame(t *testing.T, f *Frame, raw []byte) {
	t.Helper()
	o, n := &f.Offload, len(f.Data)
	if !bytes.Equal(f.Data, raw[packet.OffloadSize:]) || n < MinFrame {
		t.Fatalf("%x of %x", f.Data, raw)
	}
	if o.Flags&^3 != 0 || o.Flags&packet.OffloadNeedsChecksum != 0 && int(o.CsumStart)+int(o.CsumOffset)+2 > n ||
		o.GSOType != packet.GSONone && o.GSOSize == 0 || int(o.HdrLen) > n || o.GSOType == packet.GSONone && o.GSOSize != 0 {
		t.Fatalf("%+v with %d bytes", o, n)
	}
	var b [packet.OffloadSize]byte
	var again packet.Offload
	encodeOffload(b[:], o)
	decodeOffload(b[:], &again)
	if again != *o {
		t.Fatalf("%+v written, %+v read", o, again)
	}
}

// checkSent reads what was sent to the device.
func checkSent(t *testing.T, fd int, link *tap, f *Frame, ok bool) {
	t.Helper()
	var payload []byte
	sent := uint64(0)
	b := make([]byte, 1<<18)
	for {
		n, err := unix.Read(fd, b)
		if err != nil || n == 0 {
			break
		}
		sent++
		var o packet.Offload
		decodeOffload(b, &o)
		frame := b[packet.OffloadSize:n]
		if len(frame) < minWire {
			t.Fatalf("frame of %d bytes", len(frame))
		}
		if o == f.Offload && bytes.HasPrefix(frame, f.Data) {
			continue
		}
		if o != (packet.Offload{}) { // neither whole, nor done in software
			t.Fatalf("%+v with %d bytes, %+v came", o, len(frame), f.Offload)
		}
		segment := frame[f.Offload.HdrLen:]
		if f.Offload.GSOType != packet.GSONone {
			segment = segment[:min(len(segment), int(f.Offload.GSOSize))] // short ones are padded
		}
		payload = append(payload, segment...)
	}
	c := link.Counters()
	if sent != c.Sent || ok != (c.Refused+c.Dropped == 0) {
		t.Fatalf("%d frames, %+v", sent, c)
	}
	if want := f.Data[f.Offload.HdrLen:]; ok && payload != nil && !bytes.HasPrefix(payload, want) {
		t.Fatalf("%d bytes of payload, %d came", len(want), len(payload))
	}
}

// FuzzCapture records frames and reads the file with pcapgo: as many records as
// frames or segments, all of what was recorded, each checksum complete.
func FuzzCapture(f *testing.F) {
	seeds := superSeeds()
	fuzz.Add(f, append([]byte{0}, slices.Concat(seeds[:13]...)...))
	fuzz.Add(f, append([]byte{2}, slices.Concat(seeds[:13]...)...))
	fuzz.Add(f, append([]byte{0}, slices.Concat(slices.Repeat([][]byte{seeds[7]}, 12)...)...))
	for _, b := range seeds {
		fuzz.Add(f, append([]byte{1}, b...))
		fuzz.Add(f, append([]byte{4}, b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0 && b[0]&4 != 0 {
			capturePipe(t, &fuzz.Source{B: b[1:]})
			return
		}
		fd, err := unix.MemfdCreate("capture", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		file := &file{fd: fd}
		s := &fuzz.Source{B: b}
		mode := s.Byte()
		c := NewCapture(CaptureTo{FD: int32(fd), Mark: -1, Room: -1})
		if mode&1 != 0 { // goes on where another left off
			c = NewCapture(CaptureTo{FD: int32(fd), Mark: -1, Room: -1, GoOn: true})
		}
		var want []recorded
		now := time.Unix(1700000000, 123456000)
		for range 16 {
			if len(s.B) == 0 {
				break
			}
			frame, built := takeSuper(s)
			want = append(want, expectRecords(frame, built)...)
			c.Frame(now, &frame.o, frame.headers, frame.payload)
			now = now.Add(time.Microsecond)
		}
		if c.Flush(); c.ended {
			t.Fatal(c.Warning())
		}
		checkRecords(t, file, want)
		if mode&2 != 0 { // one file that cannot be written ends its capture
			if err := unix.Ftruncate(fd, 0); err != nil {
				t.Fatal(err)
			}
			seal(t, fd)
			c.Frame(now, nil, random(60), nil)
			for range 2 {
				if c.Flush(); !c.ended {
					t.Fatal("no error")
				}
			}
			c.Frame(now, nil, random(60), nil)
		}
		if c.Close(); (c.Warning() != "") != (mode&2 != 0) {
			t.Fatal("no news of the end, or too many")
		}
	})
}

// capturePipe captures to a small pipe that is read now and then: what comes out is
// whole records, as many bytes as were marked, and in the end there is nothing left.
func capturePipe(t *testing.T, s *fuzz.Source) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	mark, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if _, e := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 4096); err != nil || e != nil {
		t.Fatal(err, e)
	}
	defer unix.Close(mark)
	c := NewCapture(CaptureTo{FD: int32(p[1]), Mark: int32(mark), Room: -1})
	var got []byte
	drain := func() {
		buf := make([]byte, 1<<16)
		for n, err := unix.Read(p[0], buf); err == nil && n > 0; n, err = unix.Read(p[0], buf) {
			got = append(got, buf[:n]...)
		}
	}
	frame, _ := takeSuper(s)
	now := time.Unix(1700000000, 0)
	for k := range 64 {
		c.Frame(now, &frame.o, frame.headers, frame.payload)
		c.Flush()
		if k%16 == 15 {
			drain()
		}
	}
	for c.n > 0 || c.stalled != 0 {
		drain()
		c.Flush()
	}
	c.Close()
	drain()
	var marked [8]byte
	if _, err := unix.Read(mark, marked[:]); err != nil || binary.NativeEndian.Uint64(marked[:]) != uint64(len(got)) {
		t.Fatalf("%d bytes marked, %d written, %v", binary.NativeEndian.Uint64(marked[:]), len(got), err)
	}
	for b := got[pcapHeader:]; len(b) > 0; {
		if len(b) < pcapRecord || len(b) < pcapRecord+int(binary.NativeEndian.Uint32(b[8:])) {
			t.Fatalf("%d bytes are left of a record", len(b))
		}
		b = b[pcapRecord+int(binary.NativeEndian.Uint32(b[8:])):]
	}
}

// seal makes a file that cannot be written.
func seal(t *testing.T, fd int) {
	t.Helper()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
}

// recorded is a frame that is to be found in a capture.
type recorded struct {
	size  int
	tail  []byte // what it ends with
	valid bool   // it is one that a guest can take
}

// expectRecords are the frames that stand for one that was captured.
func expectRecords(f *super, built bool) (all []recorded) {
	var c cutter
	if f.o.GSOType == packet.GSONone || !c.start(&f.o, f.headers, f.payload, MaxFrame) {
		whole := append(bytes.Clone(f.headers), f.payload...)
		if pcapRecord+len(whole) > captureSize {
			return nil
		}
		valid := built && f.o.GSOType == packet.GSONone && len(whole) <= MaxFrame
		return []recorded{{len(whole), whole[min(f.headersEnd(), len(whole)):], valid}}
	}
	return expectSent(f, MaxFrame, built)
}

// headersEnd is where bytes start that the link does not write to.
func (f *super) headersEnd() int {
	if f.o.Flags&packet.OffloadNeedsChecksum == 0 {
		return 0
	}
	return max(len(f.headers)*min(len(f.payload), 1), int(f.o.CsumStart)+int(f.o.CsumOffset)+2)
}

func checkRecords(t *testing.T, file *file, want []recorded) {
	t.Helper()
	r, err := pcapgo.NewReader(file)
	if err != nil || r.LinkType() != layers.LinkTypeEthernet {
		t.Fatalf("%v, link type %v", err, r.LinkType())
	}
	for i, w := range want {
		data, info, err := r.ReadPacketData()
		if err != nil || info.Length != len(data) || len(data) != w.size || !bytes.HasSuffix(data, w.tail) {
			t.Fatalf("record %d of %d: %v, %+v, want %d bytes", i, len(want), err, info, w.size)
		}
		if w.valid {
			if err := fuzz.CheckFrame(data); err != nil {
				t.Fatalf("record %d: %v\n%x", i, err, data)
			}
		}
	}
	if _, _, err := r.ReadPacketData(); err == nil {
		t.Fatal("a record too many")
	}
}

// file reads from the start what was written to a descriptor.
type file struct {
	fd int
	at int64
}

func (f *file) Read(b []byte) (int, error) {
	n, err := unix.Pread(f.fd, b, f.at)
	f.at += int64(max(n, 0))
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return n, err
}
