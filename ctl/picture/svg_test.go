// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

// TestSVG: looks, columns and text of each span are those of the output, and the
// picture is XML whatever the output.
func TestSVG(t *testing.T) {
	got := svg("plain \x1b[1;32mgreen\x1b[0m <&>\r\n\x1b[7mreverse\x1b[27m \x1b[2;91mfaint\x1b[m\x1b[2J\x1b[4mu\n\n▁▂█ wide\x1b[")
	for _, want := range []string{
		`x="14.0" y="27" textLength="50.4" xml:space="preserve" fill="#d6dae0">plain` + "\u00a0</text>",
		`x="64.4" y="27" textLength="42.0" xml:space="preserve" fill="#98c379" font-weight="bold">green</text>`,
		"\u00a0&lt;&amp;&gt;</text>",
		`<rect x="14.0" y="32" width="58.8" height="18" fill="#d6dae0"/>`,
		`fill="#1b1f27">reverse</text>`,
		`fill="#ff7b86" fill-opacity="0.6">faint</text>`,
		`text-decoration="underline">u</text>`,
		"▁▂█\u00a0wide",
		`height="100"`, // four lines
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	for _, out := range []string{got, svg(""), svg("\x1b[38;5;1m]]>\"'")} {
		for d := xml.NewDecoder(strings.NewReader(out)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
}
