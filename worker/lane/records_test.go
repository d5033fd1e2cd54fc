// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
)

// config is what a lane without a link is told first.
func config(flags uint64) []byte {
	return (&ipc.Config{Flags: ipc.FlagIPv4 | ipc.FlagTCP | flags, OurMAC: ourMAC, GuestMAC: guestMAC, MTU: 1500, LinkKind: ipc.LinkTap,
		SYNRetry: 6, Addr4: guest4, Prefix4: 24, Our4: our4, MaxFlows: 200}).Encode()
}

// TestStartUp: a lane starts with a configuration, and with nothing else before it.
func TestStartUp(t *testing.T) {
	start := ipc.Empty(ipc.KindStart)
	for _, tt := range []struct {
		name string
		recs [][]byte
		want string // part of the error, "" for none
	}{
		{"as it should be", [][]byte{config(ipc.FlagTrace | ipc.FlagDebug), start}, ""},
		{"nothing", nil, "EOF"},
		{"no start", [][]byte{config(0)}, "EOF"},
		{"start first", [][]byte{start}, "malformed"},
		{"two configurations", [][]byte{config(0), config(0), start}, "malformed"},
		{"half a configuration", [][]byte{config(0)[:40]}, "malformed"},
		{"no record", [][]byte{{1, 2, 3}}, "malformed"},
		{"a link without its descriptor", [][]byte{config(0), (&ipc.Link{Kind: ipc.LinkTap}).Encode(), start}, "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs, err := ipc.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(theirs)
			for _, rec := range tt.recs {
				send(t, ours, rec, -1)
			}
			unix.Close(ours)
			_, err = New(theirs)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := New(-1); err == nil {
		t.Error("a lane without a channel")
	}
}

// TestBrokerRecords: a record that the broker never sends ends the lane, and the
// broker's end does so quietly.
func TestBrokerRecords(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	dup := func() int {
		fd, err := unix.Dup(int(null.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	listener := ipc.Listener{ID: 1, Proto: ipc.ProtoUDP, HostPort: 1, GuestPort: 1}
	withdrawn := listener.Encode(ipc.KindUnlisten)
	answer := func(token uint64) []byte {
		b := make([]byte, ipc.OpenedSize)
		(&ipc.Opened{Token: token, Errno: 111}).Encode(b)
		return b
	}
	switched := func(token uint64, e syscall.Errno) []byte {
		b := make([]byte, ipc.SwitchSize)
		(&ipc.Switch{Token: token, Errno: uint16(e)}).Encode(b)
		return b
	}
	waits := func(e syscall.Errno) []byte {
		b := make([]byte, ipc.OpenedSize)
		(&ipc.Opened{Token: flow.Token(flow.OwnerTCP, 1, 1), Errno: uint16(e), Flags: ipc.OpenedWait}).Encode(b)
		return b
	}
	revoke := func(proto uint8, port uint16) []byte {
		b := make([]byte, ipc.RevokeSize)
		(&ipc.Revoke{Proto: proto, Addr: our4, Port: port}).Encode(b)
		return b
	}
	flows := func(tokens ...uint64) []byte {
		b, r := make([]byte, ipc.RevokeFlowsSize), ipc.RevokeFlows{N: uint32(len(tokens))}
		copy(r.Tokens[:], tokens)
		r.Encode(b)
		return b
	}
	for _, tt := range []struct {
		name string
		rec  []byte
		fd   bool
		want string
	}{
		{"the end", nil, false, ""},
		{"a listener", listener.Encode(ipc.KindListener), true, ""},
		{"a listener that goes", withdrawn, false, ""},
		{"UDP flows that may not go on", revoke(ipc.ProtoUDP, 1), false, ""},
		{"echo that may not go on", revoke(ipc.ProtoICMP, 0), false, ""},
		{"flows that may not go on", flows(flow.Token(flow.OwnerTCP, 1, 1), flow.Token(flow.OwnerUDP, 1, 1), flow.Token(flow.OwnerICMP, 1, 1),
			flow.Token(flow.OwnerBypass, 1, 1), flow.Token(flow.OwnerBypass, 1, 1<<31)), false, ""},
		{"flows of the lane itself", flows(flow.Token(flow.OwnerLane, 0, 1)), false, "nobody has"},
		{"flows of nobody", flows(flow.Token(flow.OwnerTCP, 1, 1), flow.Token(flow.Owners, 0, 1)), false, "nobody has"},
		{"no flows", flows(), false, "malformed"},
		{"a capture's mark, which comes at the start", (&ipc.Capture{Flags: ipc.CaptureMark}).Encode(), true, "malformed"},
		{"an answer to a flow that is gone", answer(flow.Token(flow.OwnerTCP, 1, 1)), false, ""},
		{"no record", []byte{1, 2, 3}, false, "malformed"},
		{"a listener without its socket", listener.Encode(ipc.KindListener), false, "malformed"},
		{"half a listener that goes", withdrawn[:12], false, "malformed"},
		{"half a refusal", revoke(ipc.ProtoUDP, 1)[:12], false, "malformed"},
		{"a capture without its file", (&ipc.Capture{}).Encode(), false, "malformed"},
		{"half an answer", answer(0)[:12], false, "malformed"},
		{"an answer to the lane itself", answer(flow.Token(flow.OwnerLane, 0, 1)), false, "for nobody"},
		{"an answer to nobody", answer(flow.Token(flow.Owners, 0, 1)), false, "for nobody"},
		{"a request", ipc.Empty(ipc.KindReady), false, "malformed"},
		{"a socket for a connection that is gone", switched(flow.Token(flow.OwnerTCP, 1, 1), 0), true, ""},
		{"a socket for a flow that is gone", switched(flow.Token(flow.OwnerUDP, 1, 1), 0), true, ""},
		{"the end of a flow that is gone", switched(flow.Token(flow.OwnerUDP, 1, 1), 13), false, ""},
		{"the end of a flow, with a socket", switched(flow.Token(flow.OwnerUDP, 1, 1), 13), true, "malformed"},
		{"a socket for an echo flow", switched(flow.Token(flow.OwnerICMP, 1, 1), 0), true, "for nobody"},
		{"half a switch", switched(0, 0)[:12], false, "malformed"},
		{"an answer that has to wait", waits(0), false, ""},
		{"an answer that has to wait, with a socket", waits(0), true, "says both"},
		{"an answer that has to wait, with an error", waits(111), false, "says both"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, theirs, err := ipc.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(theirs)
			send(t, ours, config(0), -1)
			send(t, ours, ipc.Empty(ipc.KindStart), -1)
			l, err := New(theirs)
			if err != nil {
				t.Fatal(err)
			}
			if tt.rec != nil {
				fd := -1
				if tt.fd {
					fd = dup()
				}
				send(t, ours, tt.rec, fd)
			}
			if tt.want == "" {
				unix.Shutdown(ours, unix.SHUT_WR)
			}
			err = l.Run()
			ready := make([]byte, ipc.MaxRecord)
			n, _ := unix.Read(ours, ready)
			if kind := ipc.KindOf(ready[:max(n, 0)]); kind != ipc.KindReady {
				t.Errorf("it never said that it is ready, but a record of kind %d", kind)
			}
			unix.Close(ours)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestMTUOfMachine: the MTU that a machine is told by its monitor counts for as long as
// it is connected, if it is less than ours.
func TestMTUOfMachine(t *testing.T) {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ours)
	defer unix.Close(theirs)
	var c ipc.Config
	if err := c.Decode(config(0)); err != nil {
		t.Fatal(err)
	}
	c.LinkKind = ipc.LinkVhostUser
	send(t, ours, c.Encode(), -1)
	send(t, ours, ipc.Empty(ipc.KindStart), -1)
	l, err := New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(int(l.poll.FD()))
	for _, tt := range []struct{ told, want int }{{9000, 1500}, {1400, 1400}, {1450, 1450}, {68, 68}} {
		if l.SetMTU(tt.told); l.guest.LinkMTU() != tt.want {
			t.Errorf("told %d: %d, want %d", tt.told, l.guest.LinkMTU(), tt.want)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	if err := l.newLink((&ipc.Link{Kind: ipc.LinkVhostUser}).Encode(), int32(pair[0])); err != nil {
		t.Fatal(err)
	}
	defer l.link.Close()
	if l.guest.LinkMTU() != 1500 {
		t.Errorf("the next machine: %d", l.guest.LinkMTU())
	}
}
