// SPDX-License-Identifier: Apache-2.0

package ipc_test

import (
	"encoding/binary"
	"errors"
	"testing"

	. "aldente/ipc"
	"aldente/ipc/ipctest"
)

var (
	allDirections = []Direction{ToWorker, FromWorker, ToAgent, FromAgent, ToNames, FromNames}
	allPhases     = []Phase{First, Starting, Running}
)

// TestTable: the table is sound, and there is a record for each row that its Decode
// takes.
func TestTable(t *testing.T) {
	records, seen := ipctest.Records(), map[Kind]bool{}
	for _, r := range Rows() {
		if seen[r.Kind] || r.Kind == 0 || r.Name == "" || r.Phases == 0 || r.Size < HeaderSize || r.Max < r.Size || r.Max > MaxRecord || r.Many < 1 {
			t.Errorf("%+v", r)
		}
		seen[r.Kind] = true
		if b := records[r.Kind]; len(b) < r.Size || len(b) > r.Max || KindOf(b) != r.Kind {
			t.Errorf("%s: behind its header a record has %d bytes, the table says %d to %d", r.Name, len(b)-HeaderSize, r.Size-HeaderSize, r.Max-HeaderSize)
		}
		channel := [...]Kind{ToWorker: 0, FromWorker: 0, ToAgent: AgentKindSetup, FromAgent: AgentKindSetup, ToNames: NamesKindConfig, FromNames: NamesKindConfig}
		if r.Kind>>8 != channel[r.Direction]>>8 {
			t.Errorf("%s is of another channel than its number", r.Name)
		}
	}
	if len(records) != len(seen) {
		t.Errorf("%d records for %d kinds", len(records), len(seen))
	}
}

// TestCheck: each kind, in each direction and phase, of the right size and others,
// with a descriptor and without, passes exactly where the table says so.
func TestCheck(t *testing.T) {
	n, passed := 0, map[Kind]int{}
	for _, m := range ipctest.Messages(ipctest.Records()) {
		for _, d := range allDirections {
			for _, p := range allPhases {
				kind, err := d.Check(m.Bytes, m.FD, p)
				n++
				switch want := ipctest.Permitted(&m, d, p); {
				case want && (err != nil || kind != m.Kind):
					t.Errorf("%s, direction %d, phase %d: kind %#x, %v", m.Name, d, p, kind, err)
				case !want && (!errors.Is(err, ErrMalformed) || kind != 0):
					t.Errorf("%s, direction %d, phase %d: kind %#x, %v, though the table does not say so", m.Name, d, p, kind, err)
				case want:
					passed[kind]++
				}
			}
		}
	}
	for _, r := range Rows() {
		if passed[r.Kind] == 0 {
			t.Errorf("%s never passes", r.Name)
		}
	}
	t.Logf("%d messages", n)
}

// TestCheckMany: as many records as may be in one message, and no more.
func TestCheckMany(t *testing.T) {
	for kind, most := range map[Kind]int{KindOpen: MaxBatch, KindFlow: MaxFigures, KindFigures: MaxFigures} {
		b := ipctest.Records()[kind]
		var all []byte
		for n := 1; n <= most+1; n++ {
			all = append(all, b...)
			if _, err := FromWorker.Check(all, false, Running); (err == nil) != (n <= most) {
				t.Errorf("%d records of kind %#x: %v", n, kind, err)
			}
			if _, err := FromWorker.Check(all[:len(all)-1], false, Running); err == nil {
				t.Errorf("%d records of kind %#x less a byte pass", n, kind)
			}
		}
		if most*len(b) > MaxRecord {
			t.Errorf("%d records of kind %#x are more than a receiver has room for", most, kind)
		}
	}
}

// TestCheckHeader: there are no other kinds, and nothing reserved is used.
func TestCheckHeader(t *testing.T) {
	known := map[Kind]bool{}
	for _, r := range Rows() {
		known[r.Kind] = true
	}
	b := make([]byte, HeaderSize)
	binary.LittleEndian.PutUint16(b[2:], HeaderSize)
	for k := range 1 << 16 {
		binary.LittleEndian.PutUint16(b, uint16(k))
		for _, d := range allDirections {
			for _, fd := range []bool{false, true} {
				if _, err := d.Check(b, fd, First|Starting|Running); err == nil && !known[Kind(k)] {
					t.Errorf("kind %#x passes", k)
				}
			}
		}
	}
	for at := 4; at < HeaderSize; at++ {
		c := Empty(KindReady)
		c[at] = 1
		if _, err := FromWorker.Check(c, false, Starting); err == nil {
			t.Errorf("byte %d is not looked at", at)
		}
	}
	for n := range HeaderSize {
		if _, err := FromWorker.Check(Empty(KindReady)[:n], false, Starting); err == nil {
			t.Errorf("%d bytes pass", n)
		}
	}
}

// TestCheckCosts: nothing is allocated for a message that may come.
func TestCheckCosts(t *testing.T) {
	b := ipctest.Records()[KindOpened]
	if n := testing.AllocsPerRun(100, func() { _, _ = ToWorker.Check(b, true, Running) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCheck(b *testing.B) {
	rec := ipctest.Records()[KindOpened]
	for b.Loop() {
		_, _ = ToWorker.Check(rec, true, Running)
	}
}
