// SPDX-License-Identifier: Apache-2.0

package ipc_test

import (
	"errors"
	"strings"
	"testing"

	. "aldente/ipc"
)

// hostileFigures are records, each of which breaks one of the rules of its kind.
func hostileFigures() map[string][]byte {
	encode := func(r interface{ Encode([]byte) }, size int) []byte {
		b := make([]byte, size)
		r.Encode(b)
		return b
	}
	with := func(b []byte, at int, v byte) []byte {
		b[HeaderSize+at] = v
		return b
	}
	ask := func(a Ask) []byte { return encode(&a, AskSize) }
	flow := func(f Flow) []byte { return encode(&f, FlowSize) }
	figures := func(f Figures) []byte { return encode(&f, FiguresSize) }
	good := Flow{Proto: ProtoTCP, State: FlowEstablished}
	return map[string][]byte{
		"ask for nothing":              ask(Ask{Max: 1}),
		"ask for what there is not":    ask(Ask{What: AskFigures + 1, Max: 1}),
		"ask for no record":            ask(Ask{What: AskFlows}),
		"ask for too many":             ask(Ask{What: AskFlows, Max: MaxFigures + 1}),
		"ask behind the last":          ask(Ask{What: AskFlows, Max: 1, Cursor: MaxCursor}),
		"ask, reserved":                with(ask(Ask{What: AskFlows, Max: 1}), 10, 1),
		"ask, reserved too":            with(ask(Ask{What: AskFlows, Max: 1}), 11, 1),
		"answered, behind the last":    encode(&Answered{Next: MaxCursor}, AnsweredSize),
		"no figures":                   figures(Figures{}),
		"more figures than fit":        figures(Figures{N: FigureValues + 1}),
		"figures that there are not":   figures(Figures{First: uint16(NumFigures - 1), N: 2}),
		"figures far away":             figures(Figures{First: 0xffff, N: 1}),
		"figures behind the last":      figures(Figures{N: 1, Values: [FigureValues]uint64{1: 1}}),
		"figures behind the very last": figures(Figures{N: 1, Values: [FigureValues]uint64{FigureValues - 1: 1 << 63}}),
		"figures, reserved":            with(figures(Figures{N: 1}), 7, 1),
		"flow of no protocol":          flow(Flow{State: FlowOpen}),
		"flow of another protocol":     flow(Flow{Proto: 132, State: FlowOpen}),
		"flow without a state":         flow(Flow{Proto: ProtoUDP}),
		"flow in no state":             flow(Flow{Proto: ProtoTCP, State: FlowStates}),
		"datagrams in a state of TCP":  flow(Flow{Proto: ProtoUDP, State: FlowSynSent}),
		"echo in a state of TCP":       flow(Flow{Proto: ProtoICMP, State: FlowTimeWait}),
		"TCP in a state of datagrams":  flow(Flow{Proto: ProtoTCP, State: FlowRefused}),
		"flow in no direction":         flow(Flow{Proto: ProtoTCP, State: FlowEstablished, Direction: FlowDirections}),
		"echo from outside":            flow(Flow{Proto: ProtoICMPv6, State: FlowOpen, Direction: FlowIn}),
		"echo to a port":               flow(Flow{Proto: ProtoICMPv6, State: FlowOpen, RemotePort: 1}),
		"own flow, by a listener":      flow(Flow{Proto: ProtoUDP, State: FlowOpen, Listener: 1}),
		"flow, reserved":               with(flow(good), 7, 1),
	}
}

// TestHostileFigures: none of them is taken, by whichever decoder.
func TestHostileFigures(t *testing.T) {
	for name, b := range hostileFigures() {
		if _, err := decoders[KindOf(b)](b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFigureNumbers: each counter has one number, and all figures fit into one answer.
func TestFigureNumbers(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Counters {
		if part, field, ok := strings.Cut(c, "."); !ok || part == "" || field == "" || seen[c] {
			t.Errorf("%q", c)
		}
		seen[c] = true
	}
	if FirstGauge != len(Counters) || FirstHistogram != FirstGauge+NumGauges || NumFigures > MaxFigures*FigureValues {
		t.Errorf("gauges from %d on, histograms from %d on, %d figures", FirstGauge, FirstHistogram, NumFigures)
	}
}

// TestBucket: a bucket holds what is above the bound before it, and not above its own.
func TestBucket(t *testing.T) {
	for k := range Buckets - 1 {
		if at, above := Bucket(BucketBound(k)), Bucket(BucketBound(k)+1); at != k || above != k+1 {
			t.Errorf("%d ns in bucket %d, one more in %d, want %d and %d", BucketBound(k), at, above, k, k+1)
		}
	}
	for ns, want := range map[int64]int{-1 << 63: 0, -1: 0, 0: 0, 1: 0, 1<<63 - 1: Buckets - 1} {
		if got := Bucket(ns); got != want {
			t.Errorf("%d ns in bucket %d, want %d", ns, got, want)
		}
	}
}
