// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/fuzz"
	"aldente/ipc"
)

// spelled is an input as it is, or with bit 7 of the mode spelled with the words
// of the dictionary.
func spelled(mode byte, b []byte, words []string) string {
	if mode&0x80 != 0 {
		return fuzz.Spell(b, words)
	}
	return string(b)
}

// addSpecSeeds adds the specifications of the table and some that once failed.
func addSpecSeeds(f *testing.F) {
	text, err := os.ReadFile("testdata/specs.txt")
	if err != nil {
		return // built for another fuzzer, which has the seeds as files
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "-") {
			continue
		}
		for i, w := range words(line) {
			if i%2 == 1 {
				fuzz.Add(f, []byte(w), uint8(i))
				fuzz.Add(f, fuzz.Unspell(w), uint8(i|0x80))
			}
		}
	}
}

// twoRanges is an entry that maps a range of ports to another.
var twoRanges = regexp.MustCompile(`(?:^|[,/])([0-9]+-[0-9]+):(?:[^,/]*/)?([0-9]+-[0-9]+)(?:$|,)`)

func length(ports string) int {
	a, b, _ := strings.Cut(ports, "-")
	first, _ := strconv.Atoi(a)
	last, _ := strconv.Atoi(b)
	return last - first
}

// FuzzSpec: no port specification panics, errors are UsageErrors, rules are
// sound and are what their own text means.
func FuzzSpec(f *testing.F) {
	addSpecSeeds(f)
	fuzz.Add(f, []byte("22-25:100-110"), uint8(0))
	fuzz.Add(f, []byte("192.0.2.1/22-25:192.0.2.2/100-101"), uint8(0))
	words := fuzz.Words("cli")
	f.Fuzz(func(t *testing.T, b []byte, mode uint8) {
		if len(b) > 4096 {
			return
		}
		spec := spelled(mode, b, words)
		o := SpecOptions{
			Proto: ipc.ProtoTCP, Ephemeral: PortRange{32768, 60999}, Auto: mode&8 == 0,
			Outbound: mode&1 != 0, IPv4Only: mode&6 == 2, IPv6Only: mode&6 == 4,
		}
		rules, err := ParseSpec(spec, o)
		if err != nil {
			if _, ok := err.(*UsageError); !ok {
				t.Fatalf("%q: %T", spec, err)
			}
			return
		}
		for i := range rules {
			checkRule(t, rules, i, o)
		}
		for _, m := range twoRanges.FindAllStringSubmatch(spec, -1) {
			if a, b := length(m[1]), length(m[2]); a != b {
				t.Fatalf("%q maps %d ports to %d", spec, a, b)
			}
		}
		again, err := ParseSpec(spec, o)
		if diff := cmp.Diff(rules, again, cmpAddr); err != nil || diff != "" {
			t.Fatalf("%q, a second time: %v %s", spec, err, diff)
		}
	})
}

// FuzzCommandLine: no command line panics, and what is accepted is sound, and
// stays the same with the program's name given by a path. Arguments are separated
// by NUL.
func FuzzCommandLine(f *testing.F) {
	for _, line := range []string{
		"pasta\x00--config-net\x00-t\x0022-25:122-125\x00--\x00sh",
		"passt\x00-1\x00-f4s/x\x00--mtu=1500",
		"aldente\x00--allow\x00any\x00-a\x00[fd00::5]/64\x00-n\x0024\x00123",
		"pasta\x00--no",
		"pasta\x00--netns\x00x\x00--userns\x00/y\x00-S\x00a b",
		"passt\x00--one-off\x00--socket\x00/s\x00--pid\x00/p\x00--address\x0010.88.0.1\x00--netmask\x0024\x00--tcp-ports\x00127.0.0.1/2300,2301-2310,~2305",
		"pasta\x00--config-net\x00-u\x00::1/8088-8088:80-80\x00--dns-forward\x00169.254.1.1\x00-T\x00none\x00-U\x00none\x00--no-map-gw\x00--netns\x00/n\x00--map-guest-addr\x00169.254.1.2",
		"pasta\x00-a\x0010.0.0.1/40", "pasta\x00-a\x00::ffff:10.0.0.1/120\x00-n\x00255.255.0.255", "pasta\x00-m\x0065521",
		"",
	} {
		fuzz.Add(f, append([]byte{0}, line...))
		fuzz.Add(f, append([]byte{0x80}, fuzz.Unspell(line)...))
	}
	words := fuzz.Words("cli")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 4096 {
			return
		}
		line := spelled(b[0], b[1:], words)
		args := strings.Split(line, "\x00")
		c, err := ParseWith(args, testPorts)
		again, errAgain := ParseWith(append([]string{"/usr/bin/" + args[0]}, args[1:]...), testPorts)
		if (err == nil) != (errAgain == nil) && !strings.Contains(args[0], "/") {
			t.Fatalf("%q: %v, by its path %v", line, err, errAgain)
		}
		if err != nil {
			if _, ok := err.(*UsageError); !ok || err.Error() == "" {
				t.Fatalf("%q: %T %v", line, err, err)
			}
			return
		}
		if c.Action != ActionRun && c.Action != ActionSelfTest {
			return
		}
		checkConfig(t, c)
		if again != nil && again.Action != c.Action {
			t.Fatalf("%q: action %v, by its path %v", line, c.Action, again.Action)
		}
	})
}
