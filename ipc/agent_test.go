// SPDX-License-Identifier: Apache-2.0

package ipc_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "aldente/ipc"
	"aldente/ipc/ipctest"
)

func name16(s string) (n [16]byte) {
	copy(n[:], s)
	return n
}

// redecode decodes a record by its kind and encodes it again.
func redecode(b []byte) ([]byte, error) {
	switch KindOf(b) {
	case AgentKindSetup:
		var r AgentSetup
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindChange:
		var r AgentChange
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindCommit:
		var r AgentCommit
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindTap:
		var r AgentTap
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindReport:
		var r AgentReport
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindOpen:
		var r AgentOpen
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindOpened:
		var r AgentOpened
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindDone:
		var r AgentDone
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindLayer:
		var r AgentLayer
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindUpdate:
		var r AgentUpdate
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindScan:
		var r AgentScan
		err := r.Decode(b)
		return r.Encode(), err
	case AgentKindPorts:
		var r AgentPorts
		err := r.Decode(b)
		return r.Encode(), err
	}
	return nil, ErrMalformed
}

func TestAgentRecords(t *testing.T) {
	for kind, b := range ipctest.Records() {
		if kind < AgentKindSetup || kind >= NamesKindConfig {
			continue
		}
		if KindOf(b) != kind {
			t.Errorf("%#x: kind %#x", kind, KindOf(b))
		}
		again, err := redecode(b)
		if d := cmp.Diff(b, again); err != nil || d != "" {
			t.Errorf("%#x: %v, (-want +got)\n%s", kind, err, d)
		}
		// The worker's side has no such kinds.
		for _, d := range []Direction{ToWorker, FromWorker} {
			if _, err := d.Check(b, false, First|Starting|Running); !errors.Is(err, ErrMalformed) {
				t.Errorf("%#x is valid on the worker's channel: %v", kind, err)
			}
		}
		for _, bad := range [][]byte{b[:len(b)-1], append(bytes.Clone(b), 0), b[:HeaderSize], b[:3], nil} {
			if _, err := redecode(bad); !errors.Is(err, ErrMalformed) {
				t.Errorf("%#x with %d bytes instead of %d: %v", kind, len(bad), len(b), err)
			}
		}
		reserved := bytes.Clone(b)
		reserved[5] = 1
		if _, err := redecode(reserved); !errors.Is(err, ErrMalformed) {
			t.Errorf("%#x with a reserved byte set: %v", kind, err)
		}
	}
}

func TestAgentRanges(t *testing.T) {
	setup := AgentSetup{ID: 1, Name: name16("eth0")}
	for name, change := range map[string]func(s *AgentSetup){
		"unknown flag":      func(s *AgentSetup) { s.Flags = 1 << 7 },
		"reserved":          func(s *AgentSetup) { s.Reserved[1] = 1 },
		"no name":           func(s *AgentSetup) { s.Name = name16("") },
		"name too long":     func(s *AgentSetup) { s.Name = name16("sixteen-bytes-xx") },
		"slash":             func(s *AgentSetup) { s.Name = name16("a/b") },
		"colon":             func(s *AgentSetup) { s.Name = name16("a:1") },
		"space":             func(s *AgentSetup) { s.Name = name16("a b") },
		"dot":               func(s *AgentSetup) { s.Name = name16(".") },
		"dots":              func(s *AgentSetup) { s.Name = name16("..") },
		"bytes behind name": func(s *AgentSetup) { s.Name = name16("a\x00b") },
	} {
		s := setup
		change(&s)
		if err := new(AgentSetup).Decode(s.Encode()); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"change of another type": (&AgentChange{Type: 16}).Encode(),
		"unknown change flag":    (&AgentChange{Type: AgentRoute, Flags: 8}).Encode(),
		"body too long":          (&AgentChange{Type: AgentRoute, Body: make([]byte, MaxChange+1)}).Encode(),
		"tap without index":      (&AgentTap{Name: name16("eth0")}).Encode(),
		"tap without name":       (&AgentTap{Index: 2}).Encode(),
		"report level":           (&AgentReport{Fatal: 2}).Encode(),
		"answer with padding":    (&AgentOpened{Padding: 1}).Encode(),
		"unknown open flag":      (&AgentOpen{Proto: ProtoTCP, Flags: 1 << 7}).Encode(),
		"open of no protocol":    (&AgentOpen{Proto: ProtoICMP}).Encode(),
		"socket of netlink":      (&AgentOpen{Proto: 255}).Encode(),
		"scan for ever":          (&AgentScan{Wait: 2}).Encode(),
		"ports without end":      (&AgentPorts{}).Encode(),
		"failure without end":    (&AgentPorts{Errno: 1, N: 1, Bits: [MaxPortWords]uint64{1}}).Encode(),
		"two ends":               (&AgentPorts{Last: 2}).Encode(),
		"too many words":         (&AgentPorts{Last: 1, N: MaxPortWords + 1}).Encode(),
		"ports beyond the last":  (&AgentPorts{N: 1, Words: [MaxPortWords]uint16{PortWords}, Bits: [MaxPortWords]uint64{1}}).Encode(),
		"an empty word":          (&AgentPorts{N: 1, Words: [MaxPortWords]uint16{1}}).Encode(),
		"a word twice":           (&AgentPorts{N: 2, Words: [MaxPortWords]uint16{1, 1}, Bits: [MaxPortWords]uint64{1, 1}}).Encode(),
		"a word behind the last": (&AgentPorts{N: 1, Bits: [MaxPortWords]uint64{1, 1}}).Encode(),
		"an index behind it":     (&AgentPorts{N: 1, Words: [MaxPortWords]uint16{0, 9}, Bits: [MaxPortWords]uint64{1}}).Encode(),
	} {
		if _, err := redecode(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := AgentChange{Type: AgentAddress, Body: make([]byte, MaxChange)}
	if _, err := redecode(long.Encode()); err != nil {
		t.Errorf("longest body: %v", err)
	}
}
