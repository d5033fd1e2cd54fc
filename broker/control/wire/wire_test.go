// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/broker/cli"
	"aldente/ipc"
)

var compare = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

//go:embed testdata/*.hex
var recordings embed.FS

// recorded returns the bytes of a file in hexadecimal.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	text, err := recordings.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		if line[0] != '#' {
			digits.WriteString(strings.TrimSpace(line))
		}
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rule parses one port specification.
func rule(t testing.TB, proto uint8, outbound bool, spec string) cli.Rule {
	t.Helper()
	rules, err := cli.ParseSpec(spec, cli.SpecOptions{Proto: proto, Outbound: outbound, Auto: true})
	if err != nil || len(rules) != 1 {
		t.Fatal(rules, err)
	}
	return rules[0]
}

// TestGolden: what passt's own programs have sent is read, and written to the byte.
func TestGolden(t *testing.T) {
	const caps = CapIPv4 | CapIPv6 | CapTCP | CapUDP | CapScan | CapInterfaces
	tables := []Table{
		{ID: Host, Name: "HOST", Caps: caps, Rules: []cli.Rule{
			rule(t, ipc.ProtoTCP, false, "9002"), rule(t, ipc.ProtoUDP, false, "127.0.0.1/5000-5010:6000-6010"),
		}},
		{ID: Splice, Name: "SPLICE", Caps: caps, Rules: []cli.Rule{rule(t, ipc.ProtoUDP, true, "4444")}},
	}
	want := recorded(t, "hello.hex")
	if got := AppendHello(nil, tables); !bytes.Equal(got, want) {
		t.Errorf("a server begins with\n%x, want\n%x", got, want)
	}
	if got, err := ReadHello(bytes.NewReader(want)); err != nil || !cmp.Equal(got, tables, compare) {
		t.Errorf("read: %v\n%s", err, cmp.Diff(got, tables, compare))
	}

	tables[0].Rules = append(tables[0].Rules, rule(t, ipc.ProtoTCP, false, "9003"),
		rule(t, ipc.ProtoTCP, false, "[::]/9004"), rule(t, ipc.ProtoUDP, false, "0.0.0.0/77:78"))
	tables[1].Rules = append(tables[1].Rules, rule(t, ipc.ProtoTCP, true, "888"))
	want = recorded(t, "tables.hex")
	if got := AppendTables(nil, tables); !bytes.Equal(got, want) {
		t.Errorf("a client sends\n%x, want\n%x", got, want)
	}
	for i := range tables {
		tables[i].Name, tables[i].Caps = "", 0
	}
	if got, err := ReadTables(bytes.NewReader(want)); err != nil || !cmp.Equal(got, tables, compare) {
		t.Errorf("read: %v\n%s", err, cmp.Diff(got, tables, compare))
	}
}

// TestRules: each kind of rule comes back as it was.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		proto    uint8
		outbound bool
		spec     string
	}{
		{ipc.ProtoTCP, false, "80"}, {ipc.ProtoUDP, false, "1-65535"}, {ipc.ProtoTCP, false, "192.0.2.1/80:90"},
		{ipc.ProtoTCP, false, "192.0.2.1%eth0/80"}, {ipc.ProtoTCP, false, "%abcdefghijklmno/80"},
		{ipc.ProtoTCP, false, "2001:db8::1/80:[2001:db8::2]/90"}, {ipc.ProtoTCP, false, "0.0.0.0/80"}, {ipc.ProtoTCP, false, "::/80"},
		{ipc.ProtoTCP, false, "192.0.2.1/80:10.0.0.1/90"}, {ipc.ProtoTCP, false, "80,auto"}, {ipc.ProtoUDP, false, "all"},
		{ipc.ProtoUDP, false, "auto"}, {ipc.ProtoTCP, true, "80:90"}, {ipc.ProtoTCP, true, "auto"}, {ipc.ProtoUDP, false, "65535:1"},
	} {
		want := rule(t, tt.proto, tt.outbound, tt.spec)
		got, err := ReadTables(bytes.NewReader(AppendTables(nil, []Table{{ID: Host, Rules: []cli.Rule{want}}})))
		if err != nil || len(got) != 1 || len(got[0].Rules) != 1 || got[0].Rules[0] != want {
			t.Errorf("%s: %v, %v, want %v", tt.spec, got, err, &want)
		}
	}
}

// TestRefuses: what is no message is none, and what is cut short neither.
func TestRefuses(t *testing.T) {
	good := AppendTables(nil, []Table{{ID: Host, Rules: []cli.Rule{rule(t, ipc.ProtoTCP, false, "127.0.0.1/80-81:90-91")}}})
	const at = 5 // of the rule
	change := func(offset int, b ...byte) []byte {
		c := bytes.Clone(good)
		copy(c[offset:], b)
		return c
	}
	for name, b := range map[string][]byte{
		"protocol":                  change(at+offProto, 1),
		"unknown flag":              change(at+offFlags, 8),
		"any address, with one":     change(at+offFlags, flagDual),
		"backwards":                 change(at+offFirst, 0, 82),
		"targets beyond the last":   change(at+offTo, 255, 255),
		"interface without an end":  change(at+offInterface, bytes.Repeat([]byte{'a'}, ifNameSize)...),
		"more rules than there are": change(1, 255, 255, 255, 255),
		"a table twice":             append(bytes.Clone(good[:len(good)-1]), good...),
		"too many tables":           manyTables(),
	} {
		if _, err := ReadTables(bytes.NewReader(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := 1; n < len(good); n++ {
		if _, err := ReadTables(bytes.NewReader(good[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := ReadTables(bytes.NewReader(nil)); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}

	hello := recorded(t, "hello.hex")
	for offset, name := range map[int]string{0: "magic", 11: "version", 15: "size of names", 19: "size of interfaces' names"} {
		b := bytes.Clone(hello)
		b[offset]++
		if _, err := ReadHello(bytes.NewReader(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	for n := range hello {
		if _, err := ReadHello(bytes.NewReader(hello[:n])); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of a hello: %v", n, err)
		}
	}
}

func manyTables() (b []byte) {
	for id := range maxTables + 1 {
		b = binary.BigEndian.AppendUint32(append(b, byte(id+1)), 0)
	}
	return append(b, 0)
}

// TestAnswer: what our server says reaches our client, and silence is told from it.
func TestAnswer(t *testing.T) {
	read := func(b []byte) error { return ReadAnswer(bytes.NewReader(b)) }
	if err := read(AppendAnswer(nil, nil)); err != nil {
		t.Errorf("done: %v", err)
	}
	refused := (*Refusal)(nil)
	if err := read(AppendAnswer(nil, errors.New("port 80 is taken"))); !errors.As(err, &refused) || refused.Reason != "port 80 is taken" {
		t.Errorf("refused: %v", err)
	}
	long := AppendAnswer(nil, errors.New(strings.Repeat("x", 2*maxReason)))
	if err := read(long); !errors.As(err, &refused) || len(refused.Reason) != maxReason {
		t.Errorf("at length: %v", err)
	}
	if err := read(nil); !errors.Is(err, ErrUnanswered) {
		t.Errorf("nothing: %v", err)
	}
	for n := 1; n < 40; n++ {
		if err := read(long[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, offset := range []int{0, 11, 12} {
		b := bytes.Clone(long)
		b[offset] = 2
		if err := read(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("byte %d changed: %v", offset, err)
		}
	}
}
