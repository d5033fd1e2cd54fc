// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"
)

// events makes what test2json prints of "pass p A/x", "fail p A", "fail p", of a binary
// that came to its end, and "die p", of one that did not.
func events(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		f := append(strings.Fields(l), "")
		switch {
		case f[0] == "die":
			f[0] = "fail"
		case f[0] == "fail" && f[2] == "":
			b.WriteString(`{"Action":"output","Package":"` + f[1] + `","Output":"FAIL\u000a"}` + "\n")
		}
		fmt.Fprintf(&b, `{"Action":%q,"Package":%q,"Test":%q}`+"\n", f[0], f[1], f[2])
	}
	return b.String()
}

// TestAgain: a test that passes when run again is forgiven and named; one that fails
// again, or that nobody has seen pass, is not, nor what is no test's failure.
func TestAgain(t *testing.T) {
	pass := events("pass p A/x", "pass p A", "pass p B", "pass p")
	for _, c := range []struct {
		name     string
		first    []string
		second   string // what the second run prints
		most     int
		failed   int
		unsteady string
		broken   bool
	}{
		{name: "nothing failed", first: []string{"pass p A", "pass p"}, second: pass, most: 3, unsteady: "[]"},
		{name: "passes then", first: []string{"fail p A/x", "fail p A", "pass p B", "fail p"}, second: pass, most: 3, unsteady: "[{p A}]"},
		{name: "fails again", first: []string{"fail p A", "fail p"}, second: events("fail p A", "fail p"), most: 3, failed: 1, unsteady: "[]"},
		{name: "a part fails", first: []string{"fail p A", "fail p"}, second: events("fail p A/x", "pass p A", "pass p"), most: 3, failed: 1, unsteady: "[]"},
		{name: "never ran", first: []string{"fail p C"}, second: pass, most: 3, failed: 1, unsteady: "[]"},
		{name: "its binary dies", first: []string{"fail p A", "fail p"}, second: events("pass p A", "die p"), most: 3, failed: 1, unsteady: "[]"},
		{name: "too many", first: []string{"fail p A", "fail p B", "fail p"}, second: pass, most: 1, failed: 2, unsteady: "[]"},
		{name: "panics", first: []string{"fail p A", "die p"}, second: pass, most: 3, failed: 1, unsteady: "[]", broken: true},
		{name: "no test's failure", first: []string{"pass p A", "fail p"}, broken: true, unsteady: "[]"},
		{name: "does not build", first: []string{"build-fail p"}, broken: true, unsteady: "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSummary("")
			if err := s.read(strings.NewReader(events(c.first...))); err != nil {
				t.Fatal(err)
			}
			var unsteady []test
			if !s.broken {
				unsteady = s.again(c.most, []string{"printf", c.second + "%.0s%.0s%.0s"})
			}
			if s.failed != c.failed || fmt.Sprint(unsteady) != c.unsteady || s.broken != c.broken {
				t.Errorf("%d failed, %v, broken %v; %d, %s, %v expected", s.failed, unsteady, s.broken, c.failed, c.unsteady, c.broken)
			}
		})
	}
}
