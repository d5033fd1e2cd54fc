// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var function = regexp.MustCompile(`(?m)^func (Fuzz[A-Za-z0-9]*)\(f \*testing\.F\)`)

// found are the targets that the code has, by package.
func found(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "vendor" || d.Name() == "build" || len(d.Name()) > 2 && d.Name()[0] == '.') {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pkg, err := filepath.Rel("..", filepath.Dir(path))
		for _, m := range function.FindAllSubmatch(text, -1) {
			all = append(all, pkg+" "+string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// The list is complete, its names are unique (OSS-Fuzz has one space of names for
// a project) and none is the beginning of another (its builder looks for the
// function by the text "func NAME"), its dictionaries exist, and README.md
// explains each.
func TestTargets(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, a := range Targets() {
		listed = append(listed, a.Package+" "+a.Name)
		if a.Dictionary != "" && len(Words(a.Dictionary)) == 0 {
			t.Errorf("%s: dictionary %s is empty", a.Name, a.Dictionary)
		}
		if !bytes.Contains(readme, []byte("`"+a.Name+"`")) {
			t.Errorf("README.md does not explain %s", a.Name)
		}
		for _, b := range Targets() {
			near := b.Package == a.Package || strings.HasPrefix(b.Package, a.Package+"/")
			if a != b && (a.Name == b.Name || near && strings.HasPrefix(b.Name, a.Name)) {
				t.Errorf("%s %s and %s %s", a.Package, a.Name, b.Package, b.Name)
			}
		}
	}
	slices.Sort(listed)
	if all := found(t); !slices.Equal(all, listed) {
		t.Errorf("targets.txt lists\n%s\nthe code has\n%s", strings.Join(listed, "\n"), strings.Join(all, "\n"))
	}
}

// Each seed in testdata/fuzz can be converted, which takes that no target has
// more than one argument of variable length, and is a target's.
func TestSeedsConvert(t *testing.T) {
	files, err := filepath.Glob("../*/testdata/fuzz/*/*")
	for _, deeper := range []string{"../*/*/testdata/fuzz/*/*", "../*/*/*/testdata/fuzz/*/*"} {
		more, e := filepath.Glob(deeper)
		if files = append(files, more...); e != nil {
			err = e
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, a := range Targets() {
		names["../"+a.Package+"/testdata/fuzz/"+a.Name] = true
	}
	for _, file := range files {
		if !names[filepath.Dir(file)] {
			t.Errorf("%s is of no target", file)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		args, err := ParseSeed(text)
		if err == nil {
			_, err = LibFuzzer(args)
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// The captures hold what they are named for, and are small.
func TestCaptures(t *testing.T) {
	size := 0
	for _, frame := range Captured() {
		size += len(frame)
	}
	if size > 200<<10 {
		t.Errorf("%d bytes of frames", size)
	}
	count := func(prefix string, is func([]byte) bool) (n int) {
		for _, frame := range Captured(prefix) {
			if is(frame) {
				n++
			}
		}
		return n
	}
	udp := func(port uint16) func([]byte) bool {
		return func(f []byte) bool { return Datagram(f, port) != nil }
	}
	upper := func(proto uint8) func([]byte) bool {
		return func(f []byte) bool { return Segment(f, proto) != nil }
	}
	part := func(f []byte) bool { l, ok := locate(f); return ok && l.fragment }
	for _, c := range []struct {
		prefix string
		least  int
		is     func([]byte) bool
	}{
		{"udhcpc", 4, udp(67)}, {"dhclient4", 4, udp(67)}, {"dhclient6", 6, udp(547)}, {"mdns", 1, udp(5353)},
		{"curl", 8, upper(6)}, {"iperf3-tcp", 8, upper(6)}, {"iperf3-udp", 2, udp(5201)}, {"ping", 4, upper(1)}, {"ping", 4, upper(58)},
		{"ping", 6, part}, {"traceroute", 4, upper(17)}, {"neighbours", 4, upper(58)},
		{"neighbours", 2, func(f []byte) bool { return f[12] == 8 && f[13] == 6 }},
	} {
		if n := count(c.prefix, c.is); n < c.least {
			t.Errorf("%s: %d frames, want %d", c.prefix, n, c.least)
		}
	}
}

// What real clients and we sent is a frame that can be taken, as it is and put
// right; broken, it can be put right again.
func TestRepair(t *testing.T) {
	for _, frame := range Captured() {
		if err := CheckFrame(frame); err != nil {
			t.Errorf("%v\n%x", err, frame)
		}
		if again := Repair(frame, Version|Lengths|Sums); !bytes.Equal(again, frame) && len(frame) > 60 {
			t.Errorf("%x\nput right %x", frame, again)
		}
		l, ok := locate(frame)
		if !ok || l.end != len(frame) {
			continue
		}
		broken := slices.Clone(frame)
		broken[len(broken)-1] ^= 0x55
		broken[ethernet] = broken[ethernet]&15 | 0x90
		if !l.v6 {
			broken[ethernet+2] ^= 0xff
			broken[ethernet+10] ^= 0xff
		} else {
			broken[ethernet+4] ^= 0xff
		}
		if CheckFrame(broken) == nil {
			t.Errorf("taken: %x", broken)
		}
		fixed := Repair(broken, Version|Lengths|Options|Sums)
		if err := CheckFrame(fixed); err != nil {
			t.Errorf("%v\n%x\nput right %x", err, broken, fixed)
		}
	}
}

func TestFixTLV(t *testing.T) {
	single := func(c byte) bool { return c == 0 }
	for _, c := range []struct {
		name     string
		f        TLV
		in, want []byte
	}{
		{"cut", TLV{Head: 2, LenAt: 1}, []byte{9, 200, 1, 2}, []byte{9, 2, 1, 2}},
		{"right", TLV{Head: 2, LenAt: 1}, []byte{9, 1, 7, 8, 1, 5}, []byte{9, 1, 7, 8, 1, 5}},
		{"single", TLV{Head: 2, LenAt: 1, Single: single}, []byte{0, 0, 9, 9}, []byte{0, 0, 9, 0}},
		{"wide", TLV{Head: 4, LenAt: 2, Wide: true}, []byte{0, 1, 1, 0, 5}, []byte{0, 1, 0, 1, 5}},
		{"whole", TLV{Head: 2, LenAt: 1, Whole: true}, []byte{2, 0, 3, 9, 9}, []byte{2, 2, 3, 3, 9}},
		{"units", TLV{Head: 2, LenAt: 1, Whole: true, Unit: 8}, []byte{1, 0, 0, 0, 0, 0, 0, 0, 5}, []byte{1, 1, 0, 0, 0, 0, 0, 0, 5}},
		{"rest", TLV{Head: 2, LenAt: 1}, []byte{9}, []byte{9}},
	} {
		got := slices.Clone(c.in)
		if FixTLV(got, c.f); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %x, want %x", c.name, got, c.want)
		}
	}
}

func TestSpell(t *testing.T) {
	words := []string{"any", "-host"}
	for text, b := range map[string]string{"any-hosta": "\x80\x81a", "\x80": "\x7f\x80", "any": "\x82", "\x7f": "\x7f"} {
		if got := Spell([]byte(b), words); got != text {
			t.Errorf("%q: %q, want %q", b, got, text)
		}
	}
	for _, text := range []string{"", "a\x7f\xffb\x00", "-t 22"} {
		if got := Spell(Unspell(text), words); got != text {
			t.Errorf("%q, spelled %q", text, got)
		}
	}
}

func TestLibFuzzer(t *testing.T) {
	b, err := LibFuzzer([]any{[]byte("xy"), uint16(0x102), uint8(3)})
	if want := []byte{1, 2, 3, 1, 'x', 'y'}; err != nil || !bytes.Equal(b, want) {
		t.Errorf("%x, %v, want %x", b, err, want)
	}
	if _, err := LibFuzzer([]any{[]byte{1}, "2"}); err == nil {
		t.Error("two arguments of variable length")
	}
	args, err := ParseSeed([]byte("go test fuzz v1\n[]byte(\"a\\x00\")\nbyte('\\x02')\nuint16(700)\nuint32(0x10)\nstring(\"z\")\n"))
	if err != nil || len(args) != 5 || args[1] != uint8(2) || args[2] != uint16(700) || args[3] != uint32(16) || args[4] != "z" {
		t.Errorf("%v, %v", args, err)
	}
}

func TestRecordsBothOrders(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		b := make([]byte, 24+16+3)
		order.PutUint32(b, 0xa1b2c3d4)
		order.PutUint32(b[32:], 3)
		copy(b[40:], "abc")
		if r := Records(b); len(r) != 1 || string(r[0]) != "abc" {
			t.Errorf("%v: %q", order, r)
		}
		if r := Records(b[:42]); len(r) != 0 {
			t.Errorf("%v, cut: %q", order, r)
		}
	}
}
