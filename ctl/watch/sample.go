// SPDX-License-Identifier: Apache-2.0

// Package watch makes of what an instance says, time after time, what a person wants
// to see: rates of flows, an order, a choice, columns that fit. It asks nobody and
// prints nothing.
package watch

import (
	"math"
	"strings"
	"time"

	"aldente/broker/control/api"
	"aldente/broker/foreign"
)

// maxText is how long a text of an instance's may be that is shown, in bytes.
const maxText = 512

// Sample is what an instance has said at one moment. What was not asked for, or not
// answered, is nil.
type Sample struct {
	At       time.Time          // when it was asked
	Status   *api.StatusReply   // what it is
	Flows    []api.Flow         // all of them
	Counters *api.CountersReply // since its start
	Refused  string             // why something of it is not there, empty: all is
}

// Clean makes the texts of a sample fit to be shown, and its numbers fit to be
// reckoned with: an instance may be of another version, or somebody else's.
func (s *Sample) Clean() {
	if st := s.Status; st != nil {
		for _, t := range []*string{&st.Version, &st.Personality, &st.Started, &st.Link, &st.LastDeath, &st.Guest, &st.Interface, &st.Egress, &st.LogLevel} {
			*t = Text(*t)
		}
		for _, list := range [][]string{st.Addresses, st.Gateways, st.Resolvers, st.Search} {
			for i := range list {
				list[i] = Text(list[i])
			}
		}
		for i := range st.Limits {
			st.Limits[i].Name = Text(st.Limits[i].Name)
		}
	}
	for i := range s.Flows {
		f := &s.Flows[i]
		for _, t := range []*string{&f.Protocol, &f.Direction, &f.State, &f.Guest, &f.Remote, &f.Rule, &f.Name} {
			*t = Text(*t)
		}
		for _, v := range []*float64{&f.Age, &f.Idle, &f.RTT} {
			*v = number(*v)
		}
	}
}

// Text is what may be shown of a text: no control characters, and not too long.
func Text(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return foreign.Line(s)
}

// number is a time that can be reckoned with.
func number(v float64) float64 {
	if !(v >= 0) || v > math.MaxInt32 {
		return 0
	}
	return v
}

// Row is a flow with what two samples tell of it.
type Row struct {
	api.Flow
	SentRate     float64 `json:"sent_rate"`     // bytes per second from the guest
	ReceivedRate float64 `json:"received_rate"` // bytes per second to the guest
	Known        bool    `json:"-"`             // the rates are
}

// key says which flow is which. Two flows of one key follow each other in time.
type key struct{ protocol, direction, guest, remote string }

func keyOf(f *api.Flow) key { return key{f.Protocol, f.Direction, f.Guest, f.Remote} }

// Rows are the flows of a sample, with the rates since another, which may be nil. A
// flow that has begun between them has moved all it moved since then.
func Rows(before, now *Sample) []Row {
	rows := make([]Row, len(now.Flows))
	for i := range now.Flows {
		rows[i].Flow = now.Flows[i]
	}
	if before == nil {
		return rows
	}
	passed := now.At.Sub(before.At).Seconds()
	if passed <= 0 {
		return rows
	}
	old := make(map[key]*api.Flow, len(before.Flows))
	for i := range before.Flows {
		old[keyOf(&before.Flows[i])] = &before.Flows[i]
	}
	for i := range rows {
		r := &rows[i]
		was := old[keyOf(&r.Flow)]
		if was == nil || was.Age > r.Age || was.Sent > r.Sent || was.Received > r.Received {
			if r.Age > passed+slack {
				continue // it was there and not seen: nothing is known
			}
			was = &api.Flow{}
		}
		r.SentRate = float64(r.Sent-was.Sent) / passed
		r.ReceivedRate = float64(r.Received-was.Received) / passed
		r.Known = true
	}
	return rows
}

// slack is how much later than the clock here an instance may have looked at its
// own, in seconds.
const slack = 0.5
