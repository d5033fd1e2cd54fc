// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"strings"
	"testing"
	"unicode"

	"aldente/fuzz"
)

func TestAppendText(t *testing.T) {
	for name, want := range map[string]string{
		"ping":       "icmp 192.",
		"curl":       "tcp ",
		"neighbours": "",
		"udhcpc":     "udp 0.0.0.0:68 > 255.255.255.255:67 length ",
	} {
		seen := false
		for _, frame := range fuzz.Captured(name) {
			var p Packet
			if p.Decode(frame) != nil {
				continue
			}
			text := string(p.AppendText(nil))
			seen = seen || strings.Contains(text, want)
			if text == "" || strings.IndexFunc(text, func(c rune) bool { return c > unicode.MaxASCII || !unicode.IsPrint(c) }) >= 0 {
				t.Errorf("%s: %q", name, text)
			}
		}
		if !seen {
			t.Errorf("%s: no %q", name, want)
		}
	}
}

// TestAppendTextExactly spells some out.
func TestAppendTextExactly(t *testing.T) {
	mac := MAC{2, 0, 0, 0, 0, 1}
	b := make([]byte, 2048)
	arp := append([]byte(nil), b[:PutARP(b, ARPRequest, mac, mac, mac, [4]byte{10, 0, 0, 2}, MAC{}, [4]byte{10, 0, 0, 1})]...)
	other := append([]byte(nil), arp...)
	other[12], other[13] = 0x88, 0xcc
	for want, frame := range map[string][]byte{
		"arp request for 10.0.0.1 from 10.0.0.2": arp,
		"ethertype 0x88cc length 60":             other,
	} {
		var p Packet
		if err := p.Decode(frame); err != nil {
			t.Fatal(err)
		}
		if got := string(p.AppendText(nil)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// FuzzText: whatever decodes has a text, of printable ASCII and bounded.
func FuzzText(f *testing.F) {
	for _, frame := range fuzz.Captured() {
		fuzz.Add(f, frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var p Packet
		if p.Decode(frame) != nil {
			return
		}
		text := string(p.AppendText(nil))
		if text == "" || len(text) > 400 || strings.IndexFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) >= 0 {
			t.Errorf("%q", text)
		}
	})
}
