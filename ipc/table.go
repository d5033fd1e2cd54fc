// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Direction is who speaks to whom.
type Direction uint8

// Directions.
const (
	ToWorker   Direction = iota // from the broker
	FromWorker                  // to the broker
	ToAgent                     // from the broker
	FromAgent                   // to the broker
	ToNames                     // from the broker
	FromNames                   // to the broker
	directions
)

// Phase is a set of times in the life of who receives, or of whom the broker
// receives from.
type Phase uint8

// Phases. The agent knows the last two.
const (
	First    Phase = 1 << iota // nothing has come yet
	Starting                   // worker, names: until they say that they are ready; agent: until it has confined itself
	Running
)

// Descriptor says whether one comes with a record.
type Descriptor uint8

// Descriptors.
const (
	Without Descriptor = iota
	With
	// Either leaves it to the record: with an answer that tells of success, with a
	// connection, and with what begins a capture. The worker may get such a one without,
	// where its table is full.
	Either
)

// Row is what is true of all records of a kind, whatever they say.
type Row struct {
	Kind       Kind       // above zero
	Name       string     // for people
	Direction  Direction  // the only one
	Phases     Phase      // in which it may come
	Descriptor Descriptor // whether one comes with it
	Size, Max  int        // in bytes, header included; they differ for one kind only
	Many       int        // how many may be in one message
}

// Rows returns the table of all kinds, the only place that says which there are.
// Whoever receives asks Check, and looks at nothing that this has refused.
func Rows() []Row { return slices.Clone(table[:]) }

var table = [...]Row{
	row(KindConfig, "Config", ToWorker, First|Running, Without, binary.Size(&Config{})),
	row(KindLink, "Link", ToWorker, Starting|Running, With, 8),
	row(KindListener, "Listener", ToWorker, Starting|Running, With, 26),
	row(KindCapture, "Capture", ToWorker, Starting, With, 16),
	row(KindStart, "Start", ToWorker, Starting, Without, 0),
	row(KindOpened, "Opened", ToWorker, Running, Either, 32),
	row(KindUnlisten, "Unlisten", ToWorker, Running, Without, 26),
	row(KindRetarget, "Retarget", ToWorker, Running, Without, 26),
	row(KindLive, "Live", ToWorker, Running, Either, liveBody),
	{KindIncoming, "Incoming", ToWorker, Running, Either, IncomingSize, IncomingSize, 1},
	{KindRevoke, "Revoke", ToWorker, Running, Without, RevokeSize, RevokeSize, 1},
	{KindRevokeFlows, "RevokeFlows", ToWorker, Running, Without, RevokeFlowsSize, RevokeFlowsSize, 1},
	row(KindGone, "Gone", ToWorker, Running, Without, 1+MaxGone*16),
	{KindAsk, "Ask", ToWorker, Running, Without, AskSize, AskSize, 1},
	{KindSwitch, "Switch", ToWorker, Running, Either, SwitchSize, SwitchSize, 1},

	row(KindReady, "Ready", FromWorker, Starting, Without, 0),
	{KindOpen, "Open", FromWorker, Running, Without, OpenSize, OpenSize, MaxBatch},
	row(KindEvent, "Event", FromWorker, Running, Without, 4),
	{KindFlow, "Flow", FromWorker, Running, Without, FlowSize, FlowSize, MaxFigures},
	{KindFigures, "Figures", FromWorker, Running, Without, FiguresSize, FiguresSize, MaxFigures},
	row(KindAnswered, "Answered", FromWorker, Running, Without, 8),
	{KindInflight, "Inflight", FromWorker, Running, Without, InflightSize, InflightSize, 1},
	{KindAccepted, "Accepted", FromWorker, Running, Without, AcceptedSize, AcceptedSize, MaxBatch},
	{KindEnded, "Ended", FromWorker, Running, Without, EndedSize, EndedSize, MaxBatch},

	row(AgentKindSetup, "AgentSetup", ToAgent, Starting, Without, 40),
	{AgentKindChange, "AgentChange", ToAgent, Starting | Running, Without, changeHead, changeHead + MaxChange, 1},
	row(AgentKindCommit, "AgentCommit", ToAgent, Starting|Running, Without, 8),
	{AgentKindOpen, "AgentOpen", ToAgent, Starting | Running, Without, AgentOpenSize, AgentOpenSize, MaxBatch},
	row(AgentKindScan, "AgentScan", ToAgent, Starting|Running, Without, 8),
	row(AgentKindUpdate, "AgentUpdate", ToAgent, Running, Without, 4),

	row(NamesKindStage, "Stage", ToNames, Running, With, 8),
	row(NamesKindStageSocket, "StageSocket", ToNames, Running, With, 4),
	row(NamesKindStageEnd, "StageEnd", ToNames, Running, Without, 4),
	row(NamesKindStaged, "Staged", FromNames, Running, Without, 5+1+MaxDomain),
	row(NamesKindPassed, "Passed", FromNames, Running, Without, 10),
	row(NamesKindProxy, "Proxy", ToNames, Starting, Without, 4+2*MaxProxySecret),
	row(NamesKindRelay, "Relay", ToNames, Running, With, 24+nameSize),
	row(NamesKindRelayed, "Relayed", FromNames, Running, Without, 8),

	row(AgentKindTap, "AgentTap", FromAgent, Starting, With, 36),
	row(AgentKindReport, "AgentReport", FromAgent, Starting|Running, Without, 263),
	row(AgentKindDone, "AgentDone", FromAgent, Starting|Running, Without, 4),
	row(AgentKindLayer, "AgentLayer", FromAgent, Starting, Without, 520),
	row(AgentKindOpened, "AgentOpened", FromAgent, Running, Either, 8),
	{AgentKindPorts, "AgentPorts", FromAgent, Running, Without, agentPortsSize, agentPortsSize, 1},

	row(NamesKindConfig, "NamesConfig", ToNames, First, Without, 8+MaxSearch*nameSize),
	row(NamesKindRule, "NamesRule", ToNames, Starting|Running, Without, 4+nameSize),
	row(NamesKindRules, "NamesRules", ToNames, Starting|Running, Without, 4),
	row(NamesKindStart, "NamesStart", ToNames, Starting, With, 0),
	row(NamesKindClient, "Client", ToNames, Running, With, 8),
	row(NamesKindUpstream, "Upstream", ToNames, Running, Either, 8),
	{NamesKindGranted, "Granted", ToNames, Running, Without, GrantedSize, GrantedSize, MaxBatch},
	row(NamesKindForget, "Forget", ToNames, Running, Without, 0),

	row(NamesKindReady, "NamesReady", FromNames, Starting, Without, 0),
	{NamesKindDial, "Dial", FromNames, Running, Without, DialSize, DialSize, MaxBatch},
	{NamesKindNamed, "Named", FromNames, Running, Without, NamedSize, NamedSize, 1},
	row(NamesKindRefused, "Refused", FromNames, Running, Without, 4+nameSize),
	row(NamesKindCounted, "Counted", FromNames, Running, Without, 48),
	row(NamesKindClosed, "Closed", FromNames, Running, Without, 4),
}

// row makes a row of a kind whose records all have one size, in bytes without the
// header: that which binary.Size has for its struct. To ask it takes a while in a
// process that has just started.
func row(k Kind, name string, d Direction, p Phase, fd Descriptor, body int) Row {
	return Row{k, name, d, p, fd, HeaderSize + body, HeaderSize + body, 1}
}

// Kinds come in banks of 128, of which no more than perBank are in use.
const (
	banks   = 6
	perBank = 16
)

// index finds a kind's row; where there is none, no phase is right.
var index = func() (x [banks * perBank]Row) {
	for _, r := range table {
		*at(&x, r.Kind) = r
	}
	return x
}()

func at(x *[banks * perBank]Row, k Kind) *Row {
	if k>>7 >= banks || k&0x7f >= perBank {
		return &x[kindInvalid]
	}
	return &x[k>>7*perBank+k&0x7f]
}

// Check says which kind of record a message is or, where there may be more than
// one, consists of: b is the message, fd tells whether a descriptor came with it.
// The error is ErrMalformed if no such message may come in this direction and phase.
// What the record says is for its Decode to judge.
func (d Direction) Check(b []byte, fd bool, p Phase) (Kind, error) {
	if len(b) >= HeaderSize {
		k, size := Kind(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
		r := at(&index, k)
		if r.Size <= size && size <= r.Max && r.Direction == d && r.Phases&p != 0 && r.carries(fd) &&
			(len(b) == size || len(b) > size && len(b)%size == 0 && len(b)/size <= r.Many) &&
			binary.LittleEndian.Uint32(b[4:]) == 0 {
			return k, nil
		}
	}
	return kindInvalid, d.refuse(b, fd)
}

func (r *Row) carries(fd bool) bool {
	return r.Descriptor == Either || fd == (r.Descriptor == With)
}

func (d Direction) refuse(b []byte, fd bool) error {
	var head [4]byte
	copy(head[:], b)
	what := "without"
	if fd {
		what = "with"
	}
	return fmt.Errorf("%w: kind %#x, size %d in %d bytes, %s a descriptor, from %s", ErrMalformed,
		binary.LittleEndian.Uint16(head[:]), binary.LittleEndian.Uint16(head[2:]), len(b), what,
		[directions]string{"the broker", "the worker", "the broker", "the agent", "the broker", "names"}[d])
}
