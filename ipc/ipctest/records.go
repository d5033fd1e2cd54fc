// SPDX-License-Identifier: Apache-2.0

// Package ipctest has a record of each kind, for the tests of those who send and
// receive them.
package ipctest

import "aldente/ipc"

// Records returns one valid record of each kind.
func Records() map[ipc.Kind][]byte {
	name, _ := ipc.MakeName("guest.example.org")
	open, opened, event, revoke := make([]byte, ipc.OpenSize), make([]byte, ipc.OpenedSize), make([]byte, ipc.EventSize), make([]byte, ipc.RevokeSize)
	(&ipc.Revoke{Proto: ipc.ProtoUDP, Port: 53, Addr: [16]byte{10: 0xff, 11: 0xff, 12: 198, 13: 51, 14: 100, 15: 7}}).Encode(revoke)
	(&ipc.Open{Token: 7, Proto: ipc.ProtoUDP, Listener: 3, Src: [16]byte{1}, Dst: [16]byte{2}, SrcPort: 5, DstPort: 53}).Encode(open)
	(&ipc.Opened{Token: 7, Flags: ipc.OpenedInProgress, LocalPort: 4, PeerPort: 9, Addr: [16]byte{15: 1}}).Encode(opened)
	(&ipc.Event{Code: ipc.EventLinkClosed}).Encode(event)
	ask, flow, figures, answered := make([]byte, ipc.AskSize), make([]byte, ipc.FlowSize), make([]byte, ipc.FiguresSize), make([]byte, ipc.AnsweredSize)
	(&ipc.Ask{ID: 1, What: ipc.AskFlows, Max: ipc.MaxFigures}).Encode(ask)
	(&ipc.Flow{ID: 1, Proto: ipc.ProtoTCP, Direction: ipc.FlowIn, State: ipc.FlowEstablished, GuestPort: 80, RemotePort: 40000, RTT: 100,
		Guest: [16]byte{15: 1}, Remote: [16]byte{15: 2}, Age: 9, Idle: 8, Sent: 7, Received: 6, SentPackets: 5, ReceivedPackets: 4, Queued: 3,
		Retransmits: 2, Listener: 3}).Encode(flow)
	(&ipc.Figures{ID: 1, First: uint16(ipc.NumFigures - 2), N: 2, Values: [ipc.FigureValues]uint64{1, 1 << 63}}).Encode(figures)
	(&ipc.Answered{ID: 1, Next: 64}).Encode(answered)
	incoming := make([]byte, ipc.IncomingSize)
	(&ipc.Incoming{Listener: ipc.Listener{ID: 3, Proto: ipc.ProtoTCP, Flags: ipc.ListenerMayBypass, HostPort: 80, GuestPort: 8080}, Port: 40000, Peer: [16]byte{15: 2}}).Encode(incoming)
	flows := make([]byte, ipc.RevokeFlowsSize)
	(&ipc.RevokeFlows{N: 2, Tokens: [ipc.MaxRevoke]uint64{1<<56 | 5, 6<<56 | 1<<31}}).Encode(flows)
	inflight := make([]byte, ipc.InflightSize)
	(&ipc.Inflight{Bytes: 4096, Queues: 2, Ring: 64, Payload: ipc.InflightPayload}).Encode(inflight)
	accepted, ended := make([]byte, ipc.AcceptedSize), make([]byte, ipc.EndedSize)
	(&ipc.Accepted{Token: 7, Listener: 3, Port: 40000, Addr: [16]byte{15: 2}}).Encode(accepted)
	(&ipc.Ended{Token: 7, How: ipc.EndReset, Sent: 1, Received: 1 << 40, SentPackets: 2, ReceivedPackets: 1 << 63}).Encode(ended)
	named := make([]byte, ipc.NamedSize)
	(&ipc.Named{Seq: 9, TTL: 60, Type: 1, Name: name, Aliases: 1, Count: 2, Alias: [ipc.MaxAliases]ipc.Name{name},
		Addr: [ipc.MaxNamed][16]byte{{15: 1}, {10: 0xff, 11: 0xff, 12: 192, 15: 7}}}).Encode(named)
	switched := make([]byte, ipc.SwitchSize)
	(&ipc.Switch{Token: 7, Count: ipc.MaxStaged}).Encode(switched)
	return map[ipc.Kind][]byte{
		ipc.KindConfig: (&ipc.Config{Flags: ipc.FlagIPv4 | ipc.FlagTCP, MTU: 1500, Prefix4: 24, NDNS4: 1, NSearch: 1, Hostname: name,
			Search: [ipc.MaxSearch]ipc.Name{name}, LinkKind: ipc.LinkTap}).Encode(),
		ipc.KindLink:        (&ipc.Link{Kind: ipc.LinkStream}).Encode(),
		ipc.KindListener:    (&ipc.Listener{ID: 1, Proto: ipc.ProtoTCP, Flags: ipc.ListenerMayBypass, HostPort: 80, GuestPort: 8080}).Encode(ipc.KindListener),
		ipc.KindCapture:     (&ipc.Capture{Flags: ipc.CaptureAppend, Room: 1 << 40}).Encode(),
		ipc.KindStart:       ipc.Empty(ipc.KindStart),
		ipc.KindOpened:      opened,
		ipc.KindUnlisten:    (&ipc.Listener{ID: 1, Proto: ipc.ProtoUDP}).Encode(ipc.KindUnlisten),
		ipc.KindRevoke:      revoke,
		ipc.KindRevokeFlows: flows,
		ipc.KindGone:        (&ipc.Gone{N: 2, Addrs: [ipc.MaxGone][16]byte{{15: 1}, {10: 0xff, 11: 0xff, 12: 192, 15: 7}}}).Encode(),
		ipc.KindRetarget:    (&ipc.Listener{ID: 1, Proto: ipc.ProtoUDP, GuestPort: 80, Target: [16]byte{15: 1}}).Encode(ipc.KindRetarget),
		ipc.KindLive:        (&ipc.Live{ID: 1, Snap: 96, Flags: ipc.LiveDrops, Proto: ipc.ProtoTCP, Port: 443, Addr: [16]byte{15: 1}, Name: interfaceName("eth0")}).Encode(),
		ipc.KindReady:       ipc.Empty(ipc.KindReady),
		ipc.KindOpen:        open,
		ipc.KindEvent:       event,
		ipc.KindAccepted:    accepted,
		ipc.KindEnded:       ended,
		ipc.KindAsk:         ask,
		ipc.KindFlow:        flow,
		ipc.KindFigures:     figures,
		ipc.KindAnswered:    answered,
		ipc.KindInflight:    inflight,
		ipc.KindIncoming:    incoming,
		ipc.KindSwitch:      switched,

		ipc.AgentKindSetup: (&ipc.AgentSetup{ID: 1, Flags: ipc.AgentSetupConfigure, Name: interfaceName("eth0"), MAC: [6]byte{2, 0, 0, 0, 0, 1},
			MTU: 65520, QueueLen: 1000}).Encode(),
		ipc.AgentKindChange: (&ipc.AgentChange{ID: 1, Type: ipc.AgentRoute, Flags: ipc.AgentChangeOnLink, Body: []byte{1, 2, 3}}).Encode(),
		ipc.AgentKindCommit: (&ipc.AgentCommit{ID: 1, Changes: 7}).Encode(),
		ipc.AgentKindTap:    (&ipc.AgentTap{ID: 1, Index: 2, MAC: [6]byte{2}, Offload: 0x6f, Name: interfaceName("eth0")}).Encode(),
		ipc.AgentKindReport: (&ipc.AgentReport{ID: 1, Fatal: 1, Errno: 13, Text: name}).Encode(),
		ipc.AgentKindOpen: (&ipc.AgentOpen{ID: 1, Proto: ipc.ProtoTCP, Flags: ipc.AgentOpenBind | ipc.AgentOpenListen | ipc.AgentOpenDevice | ipc.AgentOpenDual,
			LocalPort: 80, Local: [16]byte{15: 1}}).Encode(),
		ipc.AgentKindOpened: (&ipc.AgentOpened{ID: 1, Errno: 98}).Encode(),
		ipc.AgentKindDone:   (&ipc.AgentDone{ID: 1}).Encode(),
		ipc.AgentKindLayer:  (&ipc.AgentLayer{ID: 1, State: 2, Name: name}).Encode(),
		ipc.AgentKindScan:   (&ipc.AgentScan{ID: 1, Wait: ipc.ScanChange}).Encode(),
		ipc.AgentKindUpdate: (&ipc.AgentUpdate{ID: 1}).Encode(),
		ipc.AgentKindPorts: (&ipc.AgentPorts{ID: 1, Last: 1, N: 2, Words: [ipc.MaxPortWords]uint16{0, ipc.PortWords - 1},
			Bits: [ipc.MaxPortWords]uint64{1, 1 << 63}}).Encode(),

		ipc.NamesKindConfig:   (&ipc.NamesConfig{Flags: ipc.NamesNXDOMAIN, Resolvers: 2, NSearch: 1, Search: [ipc.MaxSearch]ipc.Name{name}}).Encode(),
		ipc.NamesKindRule:     (&ipc.NamesRule{Index: 1, Flags: ipc.NameRuleAllow | ipc.NameRulePorts, Pattern: name}).Encode(),
		ipc.NamesKindRules:    (&ipc.NamesRules{Count: 2, Default: 1}).Encode(),
		ipc.NamesKindStart:    ipc.Empty(ipc.NamesKindStart),
		ipc.NamesKindClient:   (&ipc.Client{ID: 7, Proto: ipc.ProtoUDP, Port: 40000}).Encode(),
		ipc.NamesKindUpstream: (&ipc.Upstream{Seq: 9, Resolver: 1, Proto: ipc.ProtoTCP, Errno: 111}).Encode(),
		ipc.NamesKindGranted:  (&ipc.Granted{Seq: 9, Mask: 1<<63 | 1, Around: [ipc.MaxNamed]uint8{0: 101, 63: 128}}).Encode(),
		ipc.NamesKindForget:   ipc.Empty(ipc.NamesKindForget),
		ipc.NamesKindReady:    ipc.Empty(ipc.NamesKindReady),
		ipc.NamesKindDial:     (&ipc.Dial{Seq: 9, Resolver: 1, Proto: ipc.ProtoTCP}).Encode(),
		ipc.NamesKindClosed:   (&ipc.Closed{Port: 40000}).Encode(),
		ipc.NamesKindNamed:    named,
		ipc.NamesKindRefused:  (&ipc.Refused{Type: 16, Why: ipc.RefusedByRule, Name: name}).Encode(),
		ipc.NamesKindCounted:  (&ipc.Counted{Questions: 3, Refused: 2, Cached: 1, Asked: 1 << 63, Failed: 4, Forged: 5}).Encode(),

		ipc.NamesKindStage:       (&ipc.Stage{ID: 1, What: ipc.StageQUIC}).Encode(),
		ipc.NamesKindStageSocket: (&ipc.StageSocket{ID: 1}).Encode(),
		ipc.NamesKindStageEnd:    (&ipc.StageEnd{ID: 1}).Encode(),
		ipc.NamesKindStaged:      (&ipc.Staged{ID: 1, Found: ipc.FoundName, Name: name}).Encode(),
		ipc.NamesKindProxy: (&ipc.Proxy{What: ipc.ProxySOCKS5, UserLen: 1, SecretLen: 2, User: [ipc.MaxProxySecret]byte{'u'},
			Secret: [ipc.MaxProxySecret]byte{'p', 'w'}}).Encode(),
		ipc.NamesKindRelay:   (&ipc.Relay{ID: 1, Port: 443, Addr: [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}, Name: name}).Encode(),
		ipc.NamesKindRelayed: (&ipc.Relayed{ID: 1, Result: ipc.RelayRefused, Code: 5}).Encode(),
		ipc.NamesKindPassed:  (&ipc.Passed{ID: 1, Count: 517}).Encode(),
	}
}

func interfaceName(s string) (n [16]byte) {
	copy(n[:], s)
	return n
}

// Message is one that somebody may send.
type Message struct {
	Name  string        // what it is, for people
	Kind  ipc.Kind      // that it says it is
	To    ipc.Direction // in which its kind goes
	Bytes []byte        // a header at least
	FD    bool          // with a descriptor
}

// Messages returns, for each kind, its record as it should be, a byte shorter and
// longer, by what it says and by what it is, and twice; each with a descriptor and
// without. records are Records, or others of the same kinds.
func Messages(records map[ipc.Kind][]byte) (all []Message) {
	for _, r := range ipc.Rows() {
		b := records[r.Kind]
		for name, m := range map[string][]byte{
			"whole":                b,
			"cut":                  b[:len(b)-1],
			"with a byte more":     append(b[:len(b):len(b)], 0),
			"of size less one":     resize(b, len(b)-1),
			"of size and one more": resize(b, len(b)+1),
			"twice":                append(b[:len(b):len(b)], b...),
		} {
			all = append(all, Message{r.Name + ", " + name, r.Kind, r.Direction, m, false},
				Message{r.Name + ", " + name + ", with a descriptor", r.Kind, r.Direction, m, true})
		}
	}
	return all
}

// resize returns a record that says that it has a size, and has it.
func resize(b []byte, size int) []byte {
	c := make([]byte, size)
	copy(c, b)
	c[2], c[3] = byte(size), byte(size>>8)
	return c
}

// Permitted tells what the table says of a message that is one of Messages, without
// asking Check.
func Permitted(m *Message, d ipc.Direction, p ipc.Phase) bool {
	for _, r := range ipc.Rows() {
		if r.Kind != m.Kind {
			continue
		}
		said, n := int(m.Bytes[2])|int(m.Bytes[3])<<8, len(m.Bytes)
		fd := r.Descriptor == ipc.Either || m.FD == (r.Descriptor == ipc.With)
		whole := n == said || r.Many >= 2 && n == 2*said
		return r.Direction == d && r.Phases&p != 0 && fd && said >= r.Size && said <= r.Max && whole
	}
	return false
}
