// SPDX-License-Identifier: Apache-2.0

//go:build captive && !race

package main

import (
	"bytes"
	"math"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// lie answers the broker's questions about figures, to the end of the channel:
//
//	unasked   says how much it has moved before anybody wants to know
//	absurd    all numbers are the highest, addresses and listeners are of nobody, states change
//	endless   as many flows as cursors allow
//	more      more flows than were asked for
//	other     figures instead of flows, and the other way round
//	circles   always the same flows
func (c *scriptedWorker) lie(how string) string {
	buf := make([]byte, ipc.MaxRecord)
	if how == "unasked" {
		return c.sendAll(answered(0, 0)...)
	}
	for {
		n, fd, err := ipc.Receive(c.control, buf, 0)
		if err != nil {
			return err.Error()
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		var a ipc.Ask
		if a.Decode(buf[:n]) != nil {
			continue
		}
		if said := c.sendAll(lies(how, &a)...); said != "sent" {
			return said
		}
	}
}

// lies are the messages that answer a question.
func lies(how string, a *ipc.Ask) [][]byte {
	what, next := a.What, uint32(0)
	switch how {
	case "other":
		what = ipc.AskFlows + ipc.AskFigures - what
	case "circles":
		next = 1
	case "endless":
		if next = a.Cursor + uint32(a.Max); next >= ipc.MaxCursor {
			next = 0
		}
	}
	var all []byte
	for k := range int(a.Max) {
		if what == ipc.AskFlows {
			all = append(all, absurdFlow(a.ID, k)...)
		} else if first := k * ipc.FigureValues; first+ipc.FigureValues <= ipc.NumFigures {
			all = append(all, absurdFigures(a.ID, uint16(first))...)
		}
	}
	msgs := [][]byte{all}
	if how == "more" {
		msgs = append(msgs, absurdFlow(a.ID, 0))
	}
	return append(msgs, answered(a.ID, next)...)
}

func answered(id, next uint32) [][]byte {
	b := make([]byte, ipc.AnsweredSize)
	(&ipc.Answered{ID: id, Next: next}).Encode(b)
	return [][]byte{b}
}

func absurdFlow(id uint32, k int) []byte {
	const most = math.MaxUint64
	f := ipc.Flow{
		ID: id, Proto: ipc.ProtoTCP, Direction: ipc.FlowDirection(k) % ipc.FlowDirections,
		State:     ipc.FlowSynSent + ipc.FlowState(k)%(ipc.FlowStates-ipc.FlowSynSent),
		GuestPort: 0xffff, RemotePort: 0xffff, RTT: math.MaxUint32, Age: most, Idle: most, Sent: most, Received: most,
		SentPackets: most, ReceivedPackets: most, Queued: most, Retransmits: most,
	}
	copy(f.Guest[:], bytes.Repeat([]byte{0xff}, 16))
	copy(f.Remote[:], "\x1b[2J\r\n\x00%s\"\\<&>\xc2")
	if f.Direction != ipc.FlowOut {
		f.Listener = math.MaxUint32
	}
	b := make([]byte, ipc.FlowSize)
	f.Encode(b)
	return b
}

func absurdFigures(id uint32, first uint16) []byte {
	f := ipc.Figures{ID: id, First: first, N: ipc.FigureValues}
	for k := range f.Values {
		f.Values[k] = math.MaxUint64
	}
	b := make([]byte, ipc.FiguresSize)
	f.Encode(b)
	return b
}

// sendAll sends messages.
func (c *scriptedWorker) sendAll(msgs ...[]byte) string {
	for _, m := range msgs {
		if len(m) == 0 {
			continue
		}
		if _, err := unix.Write(c.control, m); err != nil {
			return err.Error()
		}
	}
	return "sent"
}
