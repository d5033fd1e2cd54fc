// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/broker/cli"
	"aldente/fuzz"
	"aldente/ipc"
)

// known are the errors that readers may return.
func known(err error) bool {
	return errors.Is(err, ErrMalformed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// sound tells whether a rule can be counted with.
func sound(r *cli.Rule) bool {
	return (r.Proto == ipc.ProtoTCP || r.Proto == ipc.ProtoUDP) && r.First <= r.Last &&
		int(r.TargetPort)+r.Len()-1 <= 65535 && len(r.Interface) < ifNameSize && !r.TargetAddr.IsUnspecified()
}

// FuzzPortTables: whatever a client sends is read as sound rules or refused, nothing past
// the end mark is taken, and what was read is written so that it is read again.
func FuzzPortTables(f *testing.F) {
	fuzz.Add(f, recorded(f, "tables.hex"))
	fuzz.Add(f, []byte{Host, 0, 0, 0, 0, Splice, 0, 0, 0, 0, 0})
	fuzz.Add(f, []byte{Host, 0, 0, 0, 0, Host, 0, 0, 0, 0, 0})
	beyond := cli.Rule{Proto: ipc.ProtoTCP, PortRange: cli.PortRange{First: 1, Last: 9}, TargetPort: 65530}
	fuzz.Add(f, AppendTables(nil, []Table{{ID: Host, Rules: []cli.Rule{beyond}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		tables, err := ReadTables(r)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		var seen [256]bool
		for i := range tables {
			if id := tables[i].ID; seen[id] || id == 0 {
				t.Errorf("table %d twice, or the end mark", id)
			}
			seen[tables[i].ID] = true
			for j := range tables[i].Rules {
				if !sound(&tables[i].Rules[j]) {
					t.Errorf("read %v", &tables[i].Rules[j])
				}
			}
		}
		again := AppendTables(nil, tables)
		if taken := len(b) - r.Len(); len(again) != taken {
			t.Errorf("%d bytes read, %d written", taken, len(again))
		}
		same, err := ReadTables(bytes.NewReader(again))
		if err != nil || !cmp.Equal(same, tables, compare) {
			t.Errorf("%v\n%s", err, cmp.Diff(tables, same, compare))
		}
	})
}

// FuzzHello: the same of what a server begins with, and of its answer.
func FuzzHello(f *testing.F) {
	fuzz.Add(f, recorded(f, "hello.hex"))
	fuzz.Add(f, AppendAnswer(nil, nil))
	fuzz.Add(f, AppendAnswer(nil, errors.New("no")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := ReadAnswer(bytes.NewReader(b)); err != nil {
			if r := (*Refusal)(nil); errors.As(err, &r) {
				if len(r.Reason) > maxReason {
					t.Errorf("a reason of %d bytes", len(r.Reason))
				}
			} else if !errors.Is(err, ErrUnanswered) && !known(err) {
				t.Error(err)
			}
		}
		tables, err := ReadHello(bytes.NewReader(b))
		if err != nil {
			if !known(err) {
				t.Error(err)
			}
			return
		}
		same, err := ReadHello(bytes.NewReader(AppendHello(nil, tables)))
		if err != nil || !cmp.Equal(same, tables, compare) {
			t.Errorf("%v\n%s", err, cmp.Diff(tables, same, compare))
		}
	})
}
