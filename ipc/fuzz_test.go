// SPDX-License-Identifier: Apache-2.0

package ipc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
	. "aldente/ipc"
	"aldente/ipc/ipctest"
)

// decoders decode a record of one kind and encode it again.
var decoders = map[Kind]func(b []byte) ([]byte, error){
	KindConfig: func(b []byte) ([]byte, error) { var r Config; err := r.Decode(b); return r.Encode(), err },
	KindLink:   func(b []byte) ([]byte, error) { var r Link; err := r.Decode(b); return r.Encode(), err },
	KindListener: func(b []byte) ([]byte, error) {
		var r Listener
		err := r.Decode(b, KindListener)
		return r.Encode(KindListener), err
	},
	KindUnlisten: func(b []byte) ([]byte, error) {
		var r Listener
		err := r.Decode(b, KindUnlisten)
		return r.Encode(KindUnlisten), err
	},
	KindRetarget: func(b []byte) ([]byte, error) {
		var r Listener
		err := r.Decode(b, KindRetarget)
		return r.Encode(KindRetarget), err
	},
	KindCapture: func(b []byte) ([]byte, error) { var r Capture; err := r.Decode(b); return r.Encode(), err },
	KindLive:    func(b []byte) ([]byte, error) { var r Live; err := r.Decode(b); return r.Encode(), err },
	KindRevoke: func(b []byte) ([]byte, error) {
		var r Revoke
		err := r.Decode(b)
		out := make([]byte, RevokeSize)
		r.Encode(out)
		return out, err
	},
	KindGone: func(b []byte) ([]byte, error) { var r Gone; err := r.Decode(b); return r.Encode(), err },
	KindRevokeFlows: func(b []byte) ([]byte, error) {
		var r RevokeFlows
		err := r.Decode(b)
		out := make([]byte, RevokeFlowsSize)
		r.Encode(out)
		return out, err
	},
	KindOpen: func(b []byte) ([]byte, error) {
		var r Open
		err := r.Decode(b)
		out := make([]byte, OpenSize)
		r.Encode(out)
		return out, err
	},
	KindOpened: func(b []byte) ([]byte, error) {
		var r Opened
		err := r.Decode(b)
		out := make([]byte, OpenedSize)
		r.Encode(out)
		return out, err
	},
	KindAccepted: func(b []byte) ([]byte, error) {
		var r Accepted
		err := r.Decode(b)
		out := make([]byte, AcceptedSize)
		r.Encode(out)
		return out, err
	},
	KindSwitch: func(b []byte) ([]byte, error) {
		var r Switch
		err := r.Decode(b)
		out := make([]byte, SwitchSize)
		r.Encode(out)
		return out, err
	},
	NamesKindStage:       func(b []byte) ([]byte, error) { var r Stage; err := r.Decode(b); return r.Encode(), err },
	NamesKindStageSocket: func(b []byte) ([]byte, error) { var r StageSocket; err := r.Decode(b); return r.Encode(), err },
	NamesKindStageEnd:    func(b []byte) ([]byte, error) { var r StageEnd; err := r.Decode(b); return r.Encode(), err },
	NamesKindStaged:      func(b []byte) ([]byte, error) { var r Staged; err := r.Decode(b); return r.Encode(), err },
	NamesKindProxy:       func(b []byte) ([]byte, error) { var r Proxy; err := r.Decode(b); return r.Encode(), err },
	NamesKindRelay:       func(b []byte) ([]byte, error) { var r Relay; err := r.Decode(b); return r.Encode(), err },
	NamesKindRelayed:     func(b []byte) ([]byte, error) { var r Relayed; err := r.Decode(b); return r.Encode(), err },
	NamesKindPassed:      func(b []byte) ([]byte, error) { var r Passed; err := r.Decode(b); return r.Encode(), err },
	KindEnded: func(b []byte) ([]byte, error) {
		var r Ended
		err := r.Decode(b)
		out := make([]byte, EndedSize)
		r.Encode(out)
		return out, err
	},
	KindEvent: func(b []byte) ([]byte, error) {
		var r Event
		err := r.Decode(b)
		out := make([]byte, EventSize)
		r.Encode(out)
		return out, err
	},
	KindAsk: func(b []byte) ([]byte, error) {
		var r Ask
		err := r.Decode(b)
		out := make([]byte, AskSize)
		r.Encode(out)
		return out, err
	},
	KindFlow: func(b []byte) ([]byte, error) {
		var r Flow
		err := r.Decode(b)
		out := make([]byte, FlowSize)
		r.Encode(out)
		return out, err
	},
	KindFigures: func(b []byte) ([]byte, error) {
		var r Figures
		err := r.Decode(b)
		out := make([]byte, FiguresSize)
		r.Encode(out)
		return out, err
	},
	KindIncoming: func(b []byte) ([]byte, error) {
		var r Incoming
		err := r.Decode(b)
		out := make([]byte, IncomingSize)
		r.Encode(out)
		return out, err
	},
	KindInflight: func(b []byte) ([]byte, error) {
		var r Inflight
		err := r.Decode(b)
		out := make([]byte, InflightSize)
		r.Encode(out)
		return out, err
	},
	KindAnswered: func(b []byte) ([]byte, error) {
		var r Answered
		err := r.Decode(b)
		out := make([]byte, AnsweredSize)
		r.Encode(out)
		return out, err
	},
}

// FuzzRecords feeds any message to the decoders of all kinds, of both channels.
// At most one takes it, the one of the kind that its header names, and it means
// exactly what it encodes as; any other is malformed. It crosses a channel as it
// is, with one descriptor at most.
func FuzzRecords(f *testing.F) {
	var all [][]byte
	for _, b := range ipctest.Records() {
		all = append(all, b)
	}
	for _, b := range all {
		fuzz.Add(f, append([]byte{1}, b...))
		fuzz.Add(f, append([]byte{0}, b[:len(b)-1]...))
		for at := HeaderSize; at < min(len(b), HeaderSize+40); at++ {
			changed := bytes.Clone(b)
			changed[at] ^= 0xff
			fuzz.Add(f, append([]byte{2}, changed...))
		}
	}
	echo, bypass, answer := make([]byte, OpenSize), make([]byte, OpenSize), make([]byte, OpenedSize)
	(&Open{Proto: ProtoICMP, DstPort: 1}).Encode(echo)
	(&Open{Proto: ProtoICMPv6, Flags: OpenBypass, Listener: 1}).Encode(bypass)
	(&Opened{Errno: 13, Flags: OpenedProhibited}).Encode(answer)
	member, strange := make([]byte, OpenSize), make([]byte, OpenSize)
	(&Open{Proto: ProtoUDP, Flags: OpenMember, SrcPort: 9, DstPort: 9}).Encode(member)
	(&Open{Proto: ProtoUDP, Flags: OpenMember, SrcPort: 8, DstPort: 9}).Encode(strange)
	scoped, nowhere := make([]byte, OpenSize), make([]byte, OpenSize)
	(&Open{Proto: ProtoUDP, Listener: 1, Scope: 7}).Encode(scoped)
	(&Open{Proto: ProtoUDP, Scope: 7}).Encode(nowhere)
	text, _ := MakeName("a\x1b")
	for _, b := range [][]byte{echo, bypass, answer, member, strange, scoped, nowhere, (&Config{NOwn: MaxOwn + 1}).Encode(), (&Config{NDNS6: MaxDNS + 1}).Encode(), (&Config{NGroups: MaxGroups + 1}).Encode(), (&Capture{Flags: 4}).Encode(), (&Live{ID: 2, Flags: LiveEnd}).Encode(),
		(&Live{ID: 2, Flags: LiveEnd, Port: 1}).Encode(), (&Live{ID: 1, Proto: LiveARP, Port: 1, Name: name16("eth0")}).Encode(), (&Live{ID: 1, Name: name16("a b")}).Encode(), (&Link{Kind: 3}).Encode(),
		(&AgentReport{Fatal: 2}).Encode(), (&AgentReport{Text: text}).Encode(), (&AgentLayer{Name: text}).Encode(), (&AgentLayer{State: 3}).Encode(),
		(&AgentTap{Index: 1, Name: name16("..")}).Encode(), (&AgentTap{Index: 1, Name: name16("a/b")}).Encode(),
		(&AgentTap{Index: 1, Name: [16]byte{0: 'a', 5: 'b'}}).Encode(), (&AgentChange{Type: 1}).Encode(),
		(&AgentChange{Type: AgentRoute, Body: make([]byte, MaxChange+1)}).Encode(), (&AgentOpen{Proto: ProtoTCP, LocalPort: 1}).Encode(),
		(&AgentPorts{}).Encode(), (&AgentPorts{Last: 1, N: 2, Words: [MaxPortWords]uint16{7, 7}, Bits: [MaxPortWords]uint64{1, 1}}).Encode(),
		(&AgentPorts{Last: 1, Errno: 105}).Encode()} {
		fuzz.Add(f, append([]byte{0}, b...))
		fuzz.Add(f, append([]byte{1}, b...))
	}
	for _, b := range hostileFigures() {
		fuzz.Add(f, append([]byte{0}, b...))
	}
	for _, b := range hostileNames() {
		fuzz.Add(f, append([]byte{0}, b...))
	}
	nobody, endless, strange := make([]byte, AcceptedSize), make([]byte, EndedSize), make([]byte, EndedSize)
	(&Accepted{Token: 1}).Encode(nobody)
	(&Ended{Token: 1}).Encode(endless)
	(&Ended{Token: 1, How: 200}).Encode(strange)
	for _, b := range [][]byte{nobody, endless, strange} {
		fuzz.Add(f, append([]byte{0}, b...))
	}
	fuzz.Add(f, []byte{0})
	fuzz.Add(f, make([]byte, MaxRecord+2))
	for kind := uint16(0); kind < 12; kind++ {
		b := binary.LittleEndian.AppendUint16([]byte{0}, kind)
		fuzz.Add(f, append(binary.LittleEndian.AppendUint16(b, HeaderSize), 0, 0, 0, 0))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1 || len(b) > 2*MaxRecord {
			return
		}
		descriptors, rec := int(b[0]%3), b[1:]
		takers := 0
		for kind, decode := range decoders {
			again, err := decode(rec)
			if err != nil && !errors.Is(err, ErrMalformed) {
				t.Fatalf("kind %d: %v", kind, err)
			}
			if err == nil {
				takers++
				if KindOf(rec) != kind || !bytes.Equal(again, rec) {
					t.Fatalf("kind %d takes %x, %v, which encodes as %x", kind, rec, err, again)
				}
			}
		}
		again, err := redecode(rec)
		if err == nil {
			takers++
			if !bytes.Equal(rec, again) {
				t.Fatalf("%x decodes to what encodes as %x", rec, again)
			}
		} else if !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		if takers > 1 {
			t.Fatalf("%d kinds take %x", takers, rec)
		}
		checkMeaning(t, rec)
		checkCrossing(t, rec, descriptors)
		var o Opened
		if o.Decode(rec) == nil {
			checkReplies(t, &o, rec)
		}
		if n, err := MakeName(string(rec)); (err == nil) != (len(rec) <= MaxDomain) || err == nil && n.String() != string(rec) {
			t.Fatalf("name of %d bytes: %v", len(rec), err)
		}
	})
}

// checkMeaning verifies what a record that was taken must not say.
func checkMeaning(t *testing.T, rec []byte) {
	t.Helper()
	var (
		config   Config
		open     Open
		listener Listener
		tap      AgentTap
		report   AgentReport
		layer    AgentLayer
		asked    AgentOpen
		accepted Accepted
		ended    Ended
		ask      Ask
		flow     Flow
		figures  Figures
		answered Answered
		named    Named
		refusal  Refused
		dial     Dial
		client   Client
		live     Live
	)
	bad := false
	switch {
	case config.Decode(rec) == nil:
		c := &config
		bad = c.NDNS4 > MaxDNS || c.NDNS6 > MaxDNS || c.NSearch > MaxSearch || c.Prefix4 > 32 || c.Prefix6 > 128 || c.NGroups > MaxGroups
	case open.Decode(rec) == nil:
		echo := open.Proto == ProtoICMP || open.Proto == ProtoICMPv6
		bad = !echo && open.Proto != ProtoTCP && open.Proto != ProtoUDP || echo && (open.DstPort != 0 || open.Listener != 0) ||
			open.Flags&OpenBypass != 0 && open.Listener == 0 || open.Flags&OpenBypass == 0 && open.Proto == ProtoTCP && open.Listener != 0 ||
			open.Flags&OpenMember != 0 && (open.Flags&OpenBypass != 0 || open.Proto != ProtoUDP || open.Listener != 0 || open.Src != open.Dst || open.SrcPort != open.DstPort)
	case accepted.Decode(rec) == nil:
		bad = accepted.Listener == 0
	case ended.Decode(rec) == nil:
		bad = ended.How < EndClosed || ended.How > EndUnused || ended.How.String() == "unknown"
	case listener.Decode(rec, KindListener) == nil:
		bad = listener.ID == 0 || listener.Proto != ProtoTCP && listener.Proto != ProtoUDP
	case tap.Decode(rec) == nil:
		name := string(bytes.TrimRight(tap.Name[:], "\x00"))
		bad = tap.Index == 0 || tap.Padding != [2]byte{} || name == "" || len(name) > 15 || name == "." || name == ".." ||
			strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == '/' || c == ':' || c == 0x7f })
	case live.Decode(rec) == nil:
		ends := live.Flags&LiveEnd != 0
		bad = live.ID == 0 || live.Flags&^(LiveEnd|LiveDrops) != 0 || ends && live != (Live{ID: live.ID, Flags: LiveEnd}) ||
			!ends && live.Name[0] == 0 || live.Name[15] != 0 || live.Port != 0 && live.Proto != 0 && live.Proto != ProtoTCP && live.Proto != ProtoUDP
	case report.Decode(rec) == nil:
		bad = report.Fatal > 1 || hasControl(report.Text)
	case layer.Decode(rec) == nil:
		bad = layer.State > 2 || layer.Reserved != [3]byte{} || hasControl(layer.Name) || hasControl(layer.Detail)
	case asked.Decode(rec) == nil:
		bound := asked.Flags&AgentOpenBind != 0
		bad = !bound && (asked.LocalPort != 0 || asked.Local != [16]byte{} || asked.Flags&AgentOpenListen != 0)
	case ask.Decode(rec) == nil:
		bad = ask.Max < 1 || ask.Max > 32 || ask.What != AskFlows && ask.What != AskFigures || ask.Cursor >= MaxCursor
	case flow.Decode(rec) == nil:
		echo := flow.Proto == ProtoICMP || flow.Proto == ProtoICMPv6
		bad = !echo && flow.Proto != ProtoTCP && flow.Proto != ProtoUDP || echo && (flow.RemotePort != 0 || flow.Direction != FlowOut) ||
			(flow.State >= FlowSynSent) != (flow.Proto == ProtoTCP) || flow.State == 0 || flow.State > FlowTimeWait || flow.Direction > FlowBypassIn ||
			flow.Direction == FlowOut && flow.Listener != 0
	case figures.Decode(rec) == nil:
		bad = figures.N == 0 || figures.N > FigureValues || int(figures.First)+int(figures.N) > NumFigures
		for _, v := range figures.Values[min(figures.N, FigureValues):] {
			bad = bad || v != 0
		}
	case answered.Decode(rec) == nil:
		bad = answered.Next >= MaxCursor
	case named.Decode(rec) == nil:
		bad = named.Count > MaxNamed || named.Aliases > MaxAliases || named.Name.Len == 0 || hasControl(named.Name) || named.TTL > MaxTTL
		for i, a := range named.Addr {
			bad = bad || (i < int(named.Count)) == (a == [16]byte{})
		}
		for _, a := range named.Alias {
			bad = bad || hasControl(a)
		}
	case refusal.Decode(rec) == nil:
		bad = refusal.Why < RefusedByRule || refusal.Why > NotRefused || hasControl(refusal.Name)
	case dial.Decode(rec) == nil:
		bad = dial.Resolver >= MaxResolvers || dial.Proto != ProtoTCP && dial.Proto != ProtoUDP
	case client.Decode(rec) == nil:
		bad = client.ID == 0 || client.Port == 0 || client.Proto != ProtoTCP && client.Proto != ProtoUDP
	}
	if bad {
		t.Fatalf("taken: %x", rec)
	}
}

func hasControl(n Name) bool {
	return strings.ContainsFunc(n.String(), func(c rune) bool { return c < ' ' || c == 0x7f })
}

// checkCrossing sends a message and some descriptors, and receives it.
func checkCrossing(t *testing.T, rec []byte, descriptors int) {
	t.Helper()
	if len(rec) == 0 {
		descriptors = 0 // x/sys would put in a byte to go with them
	}
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(b)
	fds := []int{a, b}[:descriptors]
	if descriptors < 2 {
		err = Send(a, rec, append(fds, -1)[0])
	} else {
		err = unix.Sendmsg(a, rec, unix.UnixRights(fds...), nil, 0)
	}
	unix.Close(a)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, MaxRecord)
	n, fd, err := Receive(b, buf, unix.MSG_DONTWAIT)
	if fd >= 0 {
		unix.Close(fd)
	}
	bad := len(rec) > MaxRecord || descriptors > 1
	switch {
	case bad && !errors.Is(err, ErrMalformed):
		t.Fatalf("%d bytes with %d descriptors: %v", len(rec), descriptors, err)
	case bad, len(rec) == 0:
	case err != nil || !bytes.Equal(buf[:n], rec) || (fd >= 0) != (descriptors == 1):
		t.Fatalf("%d bytes and descriptor %d of %d and %d: %v", n, fd, len(rec), descriptors, err)
	}
}

// checkReplies sends an answer many times at once, each other one with a
// descriptor, and receives them.
func checkReplies(t *testing.T, o *Opened, rec []byte) {
	t.Helper()
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(b)
	var r Replies
	for i := 0; !r.Full(); i++ {
		fd := -1
		if i%2 == 1 {
			if fd, err = unix.Dup(b); err != nil {
				t.Fatal(err)
			}
		}
		r.Add(o, fd)
	}
	err = r.Send(a)
	unix.Close(a)
	if err != nil || r.Full() {
		t.Fatal(err)
	}
	buf := make([]byte, MaxRecord)
	for i := range MaxBatch {
		n, fd, err := Receive(b, buf, 0)
		if fd >= 0 {
			unix.Close(fd)
		}
		if err != nil || !bytes.Equal(buf[:n], rec) || (fd >= 0) != (i%2 == 1) {
			t.Fatalf("answer %d: %v, descriptor %d, %x", i, err, fd, buf[:n])
		}
	}
	r.Add(o, -1)
	if r.Send(b) == nil {
		t.Fatal("sent to nobody")
	}
}

func TestWorkerRecords(t *testing.T) {
	for kind, b := range ipctest.Records() {
		if decode, ok := decoders[kind]; ok {
			if again, err := decode(b); err != nil || !bytes.Equal(again, b) {
				t.Errorf("kind %d: %v, %x encodes as %x", kind, err, b, again)
			}
		}
	}
}

// Reserved bits of Opened were let pass.
func TestOpenedReserved(t *testing.T) {
	b := bytes.Clone(ipctest.Records()[KindOpened])
	b[HeaderSize+11] |= 0x40
	var o Opened
	if err := o.Decode(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("unknown flag: %v", err)
	}
	for _, flag := range []uint16{OpenedInProgress, OpenedProhibited, OpenedStaged, OpenedWait, OpenedLate, OpenedAnswers, OpenedNames} {
		(&Opened{Token: 7, Flags: flag}).Encode(b)
		if err := o.Decode(b); err != nil || o.Flags != flag {
			t.Errorf("flag %#x: %v", flag, err)
		}
	}
}
