// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
)

// logOf returns what do has logged.
func logOf(t *testing.T, do func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		t.Fatal(err)
	}
	was := logFD
	logFD = int(w.Fd())
	do()
	logFD = was
	w.Close()
	b := make([]byte, 1<<20)
	n, _ := r.Read(b)
	r.Close()
	return string(b[:n])
}

func TestFlowLog(t *testing.T) {
	v4 := func(d byte) [16]byte { return packet.AddrFrom4([4]byte{192, 0, 2, d}) }
	f := newFlowLog()
	got := logOf(t, func() {
		f.ask(&ipc.Open{Token: 1, Proto: ipc.ProtoTCP, Src: v4(2), SrcPort: 1000, Dst: v4(9), DstPort: 80})
		f.ask(&ipc.Open{Token: 2, Proto: ipc.ProtoUDP, Src: v4(2), SrcPort: 1001, Dst: v4(9), DstPort: 53})
		f.ask(&ipc.Open{Token: 3, Proto: ipc.ProtoICMP, Src: v4(2), SrcPort: 7, Dst: v4(9)})
		f.answer(0, 10, &ipc.Opened{Token: 1})
		f.answer(0, -1, &ipc.Opened{Token: 2, Errno: uint16(syscall.EACCES), Flags: ipc.OpenedProhibited})
		f.answer(0, -1, &ipc.Opened{Token: 3, Errno: uint16(syscall.ENETUNREACH)})
		f.answer(0, 11, &ipc.Opened{Token: 4}) // nobody asked
		f.accepted(0, 12, v4(8), 4000)
		f.closed(1_500_000_000, 10)
		f.closed(1_500_000_000, 10) // another's by now
		f.closed(2e9, 12)
	})
	want := "<7>flow opened protocol=tcp direction=out from=192.0.2.2:1000 to=192.0.2.9:80\n" +
		"<7>flow refused protocol=udp direction=out from=192.0.2.2:1001 to=192.0.2.9:53 reason=\"egress rules\"\n" +
		"<7>flow refused protocol=icmp direction=out from=192.0.2.2:7 to=192.0.2.9:0 reason=\"network is unreachable\"\n" +
		"<7>flow opened protocol=tcp direction=in from=192.0.2.8:4000\n" +
		"<7>flow closed protocol=tcp direction=out from=192.0.2.2:1000 to=192.0.2.9:80 ms=1500\n" +
		"<7>flow closed protocol=tcp direction=in from=192.0.2.8:4000 ms=2000\n"
	if got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if len(f.asked)+len(f.open) != 0 {
		t.Errorf("%d requests and %d flows are left", len(f.asked), len(f.open))
	}
}

// TestFlowLogBounds: however many flows there are, in one moment or over time.
func TestFlowLogBounds(t *testing.T) {
	f := newFlowLog()
	flows := func(n int, from int64) func() {
		return func() {
			for i := range n {
				now := from + int64(i)*1e6
				f.ask(&ipc.Open{Token: uint64(i), Proto: ipc.ProtoTCP})
				f.answer(now, int32(i), &ipc.Opened{Token: uint64(i)})
				f.closed(now, int32(i))
			}
		}
	}
	first, later := logOf(t, flows(1000, 0)), logOf(t, flows(1000, 10e9))
	for _, s := range []string{first, later} {
		if n := strings.Count(s, "\n"); n < flowBurst || n > 2*(flowBurst+20) {
			t.Errorf("%d lines", n)
		}
	}
	if !strings.Contains(first, "<7>lines about flows are left out count=") {
		t.Errorf("nothing about lines left out:\n%s", first)
	}
	for i := range 10 * ipc.MaxOutstanding { // a broker that does not answer
		f.ask(&ipc.Open{Token: uint64(i)})
	}
	if len(f.asked) > 2*ipc.MaxOutstanding {
		t.Errorf("%d requests are kept", len(f.asked))
	}
}
