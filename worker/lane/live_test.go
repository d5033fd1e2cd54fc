// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"encoding/binary"
	"io"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
)

// looked is a lane that is looked at, with a guest that sends frames by hand and a
// broker that answers as the test wants.
type looked struct {
	t      *testing.T
	l      *Lane
	broker int
	guest  int
	lastID uint32
}

func newLooked(t *testing.T) *looked {
	t.Helper()
	return newLookedWith(t, func(*ipc.Config) {})
}

// newLookedWith makes one whose configuration edit changes.
func newLookedWith(t *testing.T, edit func(*ipc.Config)) *looked {
	t.Helper()
	f := newFixtureWith(t, ipc.LinkTap, 1500, true, edit)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	send(t, f.broker, (&ipc.Link{Kind: ipc.LinkTap}).Encode(), fds[0])
	k := &looked{t: t, l: f.l, broker: f.broker, guest: fds[1]}
	k.l.turn()
	t.Cleanup(func() {
		unix.Close(fds[1])
		unix.Close(f.broker)
		unix.Close(int(k.l.channel.fd))
		unix.Close(int(k.l.poll.FD()))
	})
	return k
}

// turns has the lane take its turns.
func (k *looked) turns() {
	k.t.Helper()
	for n := 0; n == 0 || ready(int(k.l.poll.FD()), unix.POLLIN, 0); n++ {
		if k.l.turn(); k.l.err != nil || n > 100 {
			k.t.Fatalf("turn %d: %v", n, k.l.err)
		}
	}
}

// look begins a capture and returns where it is read.
func (k *looked) look(rec ipc.Live) int {
	k.t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		k.t.Fatal(err)
	}
	k.lastID++
	rec.ID = k.lastID
	copy(rec.Name[:], "eth0")
	send(k.t, k.broker, rec.Encode(), p[1])
	k.turns()
	return p[0]
}

// from has the guest send a frame.
func (k *looked) from(frame []byte, o *packet.Offload) {
	k.t.Helper()
	vnet := make([]byte, packet.OffloadSize)
	vnet[0] = o.Flags
	binary.NativeEndian.PutUint16(vnet[6:], o.CsumStart)
	binary.NativeEndian.PutUint16(vnet[8:], o.CsumOffset)
	if _, err := unix.Write(k.guest, append(vnet, frame...)); err != nil {
		k.t.Fatal(err)
	}
	k.turns()
}

// asked returns the lane's only request.
func (k *looked) asked() (o ipc.Open) {
	k.t.Helper()
	b := make([]byte, ipc.MaxRecord)
	n, _, err := unix.Recvfrom(k.broker, b, unix.MSG_DONTWAIT)
	if err != nil || o.Decode(b[:n]) != nil {
		k.t.Fatalf("no request: %d bytes, %v", n, err)
	}
	return o
}

// refuse answers it.
func (k *looked) refuse(e syscall.Errno, flags uint16) {
	k.t.Helper()
	o := k.asked()
	b := make([]byte, ipc.OpenedSize)
	(&ipc.Opened{Token: o.Token, Errno: uint16(e), Flags: flags}).Encode(b)
	send(k.t, k.broker, b, -1)
	k.turns()
}

// noted is what a capture shows of a frame: its way, and what there is to tell.
func noted(t *testing.T, pipe int) (all []string, ended bool) {
	t.Helper()
	var got []byte
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Read(pipe, b)
		if err == unix.EAGAIN {
			break
		}
		if n <= 0 {
			ended = true
			break
		}
		got = append(got, b[:n]...)
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(got), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		if ended && len(got) == 0 {
			return nil, true
		}
		t.Fatal(err)
	}
	for {
		_, _, more, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			return all, ended
		}
		if err != nil {
			t.Fatal(err)
		}
		way := "to the guest"
		if more.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound {
			way = "from the guest"
		}
		all = append(all, strings.TrimSuffix(way+": "+strings.Join(more.Comments, "; "), ": "))
	}
}

// guestEnds are those of what the guest sends.
func guestEnds(v6 bool) *packet.Ends {
	e := &packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest4, Dst: remote4, TTL: 64}
	if v6 {
		e.Src, e.Dst = guest6, remote6
	}
	return e
}

func syn(v6 bool, port uint16) ([]byte, *packet.Offload) {
	b, o := make([]byte, 128), &packet.Offload{}
	n := packet.PutTCP(b, guestEnds(v6), &packet.TCPFields{SrcPort: port, DstPort: 80, Flags: packet.SYN, Window: 1000, WScale: -1}, 0, o)
	return b[:n], o
}

func question(v6 bool, port uint16) []byte {
	b := make([]byte, 128)
	return b[:packet.PutUDPFull(b, guestEnds(v6), port, 53, []byte("question"))]
}

// TestLiveNotes: each frame with why it was dropped, or what became of its flow, for
// both families; those that want to hear of nothing else hear of nothing else.
func TestLiveNotes(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			k := newLooked(t)
			none := &packet.Offload{}
			all, drops := k.look(ipc.Live{}), k.look(ipc.Live{Flags: ipc.LiveDrops})
			udp := k.look(ipc.Live{Proto: ipc.ProtoUDP, Snap: 60})
			defer func() { unix.Close(all); unix.Close(drops); unix.Close(udp) }()

			good, o := syn(v6, 1000)
			k.from(good, none) // its checksum is for the link to complete
			short := bytes.Clone(good)
			short[16+2*boolInt(v6)], short[17+2*boolInt(v6)] = 0x7f, 0xff // longer than the frame
			k.from(short, o)
			other := question(v6, 7)
			if other[23-3*boolInt(v6)] = 99; !v6 {
				other = correct4(other)
			}
			k.from(other, none)
			k.from(append(make([]byte, 12), 0x88, 0xcc, 1, 2), none)
			k.from(message(v6, 8), none)
			k.from(message(v6, 6), &packet.Offload{Flags: packet.OffloadDataValid}) // else short ones count as damaged
			k.from(good, o)
			k.refuse(syscall.EACCES, ipc.OpenedProhibited)
			again, o := syn(v6, 1001)
			k.from(again, o)
			k.refuse(syscall.ECONNREFUSED, 0)
			k.from(question(v6, 1002), none)
			k.refuse(syscall.EACCES, ipc.OpenedProhibited)
			k.from(question(v6, 1002), none)
			k.from(question(v6, 0), none)
			stray, o := syn(v6, 1004)
			stray[47+20*boolInt(v6)] = packet.ACK
			k.from(stray, o)

			want := []string{
				"from the guest: dropped: wrong checksum",
				"from the guest: dropped: malformed: shorter than its headers say",
				"from the guest: dropped: of a protocol or for an address that nobody here serves", "to the guest",
				"from the guest: dropped: of a protocol or for an address that nobody here serves",
				"from the guest: dropped: of a protocol or for an address that nobody here serves",
				"from the guest: dropped: malformed",
				"from the guest", "to the guest: refused by the egress rules",
				"from the guest", "to the guest: refused: connection refused",
				"from the guest", "to the guest: refused by the egress rules",
				"from the guest", "to the guest: refused, as the flow was that this is about",
				"from the guest", // any port is right
				"from the guest: dropped: of no connection", "to the guest",
			}
			got, _ := noted(t, all)
			if !slices.Equal(got, want) {
				t.Errorf("shown is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			got, _ = noted(t, drops)
			if want := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return !strings.Contains(s, ":") }); !slices.Equal(got, want) {
				t.Errorf("of drops, shown is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			got, _ = noted(t, udp)
			if want := want[11:16]; !slices.Equal(got, want) {
				t.Errorf("of UDP, shown is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// message is an ICMP message that is no request of so many bytes, or an echo request
// where there is no room for one.
func message(v6 bool, size int) []byte {
	b, o := make([]byte, 128), packet.Offload{}
	_ = packet.PutUDP(b, guestEnds(v6), 0, 0, 0, &o)
	end := 34 + 20*boolInt(v6) + size
	l4 := b[end-size : end]
	copy(l4, make([]byte, size))
	if l4[0] = 13; size < 8 {
		l4[0] = 8
	}
	sum := uint64(0)
	if b[23] = packet.ProtoICMP; v6 {
		if b[20], l4[0] = packet.ProtoICMPv6, 139; size < 8 {
			l4[0] = packet.ICMPv6EchoRequest
		}
		b[18], b[19], b[23] = 0, byte(size), 0
		copy(b[22:], guest6[:])
		sum = packet.Sum(b[22:54], packet.ProtoICMPv6+uint64(size))
	} else {
		b[16], b[17] = 0, byte(20+size)
		b = correct4(b)
	}
	binary.BigEndian.PutUint16(l4[2:], ^packet.Fold(packet.Sum(l4, sum)))
	return b[:end]
}

// TestLiveReasons: of what a lane counts, each counter is a reason why a frame of the
// guest's is dropped, or is known to be none.
func TestLiveReasons(t *testing.T) {
	l := newLooked(t).l
	known := map[uintptr]bool{}
	for _, r := range l.reasons() {
		known[reflect.ValueOf(r.count).Pointer()] = true
	}
	none := map[string]string{
		"lane":      "Frames Sent SendDropped",
		"fragments": "Completed TimedOut Evicted",
		"tcp":       "Opened Accepted Refused Reset Retransmits Timeouts OutOfOrder Challenges Evicted Revoked",
		"udp":       "ToHost ToGuest WriteFailed Strangers Returned Truncated NoTarget SendFailed Opened Refused Inbound Expired Evicted Revoked Broken Errors",
		"icmp":      "ToHost ToGuest Strange SendFailed Opened Refused Expired Broken Revoked Errors",
	}
	for name, stats := range map[string]any{"lane": &l.Stats, "fragments": &l.reasm.Stats, "tcp": &l.tcp.Stats, "udp": &l.udp.Stats, "icmp": &l.icmp.Stats} {
		v := reflect.ValueOf(stats).Elem()
		for i := range v.NumField() {
			field := v.Type().Field(i).Name
			if listed := slices.Contains(strings.Fields(none[name]), field); listed == known[v.Field(i).Addr().Pointer()] {
				t.Errorf("%s.%s: a capture has to tell of it, or must not: %v", name, field, !listed)
			}
		}
	}
}

// correct4 has the header's checksum right.
func correct4(b []byte) []byte {
	b[24], b[25] = 0, 0
	binary.BigEndian.PutUint16(b[24:], ^packet.Fold(packet.Sum(b[14:34], 0)))
	return b
}

// TestLiveNotTaken: what the guest's link does not take is shown, and why.
func TestLiveNotTaken(t *testing.T) {
	k := newLooked(t)
	pipe := k.look(ipc.Live{Flags: ipc.LiveDrops})
	defer unix.Close(pipe)
	if err := unix.Shutdown(k.guest, unix.SHUT_RD); err != nil {
		t.Fatal(err)
	}
	frame, o := syn(false, 1000)
	k.from(frame, o)
	k.refuse(syscall.ECONNREFUSED, 0)
	if got, _ := noted(t, pipe); !slices.Equal(got, []string{"to the guest: " + notTaken[0]}) {
		t.Errorf("shown is %q", got)
	}
}

// TestLiveEnds: captures end when nobody reads, when they are told to, and when there is
// no room for them. Nothing is left then, and nothing is looked at any more.
func TestLiveEnds(t *testing.T) {
	k := newLooked(t)
	open := func() int {
		fd, err := unix.Dup(k.guest)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		return fd
	}
	before := open()
	for round := range 100 {
		pipe := k.look(ipc.Live{})
		if k.l.live == nil {
			t.Fatal("nobody looks")
		}
		unix.Close(pipe)
		if round%2 == 0 {
			k.turns() // the pipe's end is an event
		} else {
			k.from(question(false, 53), &packet.Offload{})
			if round == 1 {
				k.asked()
			}
		}
		if k.l.live != nil {
			t.Fatal("somebody looks")
		}
	}
	end := func() {
		send(t, k.broker, (&ipc.Live{ID: k.lastID, Flags: ipc.LiveEnd}).Encode(), -1)
		k.turns()
	}
	pipe := k.look(ipc.Live{})
	end()
	if _, ended := noted(t, pipe); !ended || k.l.live != nil {
		t.Error("it did not end as it was told")
	}
	unix.Close(pipe)
	end() // of one that has ended

	// One too many, and then one for which a place is had that nobody reads.
	var pipes []int
	for range ipc.MaxLive {
		pipes = append(pipes, k.look(ipc.Live{}))
	}
	for range 100 {
		k.from(append(question(false, 1), make([]byte, 40000)...), &packet.Offload{}) // more than a pipe holds
	}
	many := k.look(ipc.Live{})
	if _, ended := noted(t, many); !ended {
		t.Error("one too many goes on")
	}
	unix.Close(many)
	k.lastID--
	end()
	if k.l.live.captures[ipc.MaxLive-1].None() {
		t.Error("what nobody has read yet is lost")
	}
	next := k.look(ipc.Live{})
	k.from(question(false, 53), &packet.Offload{})
	if got, ended := noted(t, next); ended || len(got) != 1 {
		t.Errorf("a new one shows %q, ended %v", got, ended)
	}
	k.lastID -= ipc.MaxLive - 1 // the second of those that nobody reads
	end()
	k.l.start = k.l.start.Add(-time.Duration(lastWords) - time.Millisecond)
	if k.from(question(false, 53), &packet.Offload{}); !k.l.live.captures[1].None() {
		t.Error("what nobody reads is kept for ever")
	}
	for _, fd := range append(pipes, next) {
		unix.Close(fd)
	}
	k.turns()
	if k.l.live != nil || open() != before {
		t.Errorf("descriptors are left: %d was free, %d is", before, open())
	}
}

// TestLiveAllocates: nothing, while frames are captured.
func TestLiveAllocates(t *testing.T) {
	k := newLooked(t)
	pipe, drops := k.look(ipc.Live{}), k.look(ipc.Live{Flags: ipc.LiveDrops, Proto: ipc.ProtoUDP, Port: 1})
	defer func() { unix.Close(pipe); unix.Close(drops) }()
	b, frame := make([]byte, 1<<20), append(make([]byte, packet.OffloadSize), question(true, 0)...)
	bad := bytes.Clone(frame)
	bad[len(bad)-1]++
	if n := testing.AllocsPerRun(100, func() {
		_, _ = unix.Write(k.guest, frame)
		_, _ = unix.Write(k.guest, bad)
		k.l.turn()
		_, _ = unix.Read(pipe, b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
