// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"aldente/broker/rulesfile"
)

func text(name, s string) RulesText { return RulesText{Name: name, Text: []byte(s)} }

// ruled is what the egress rules of a command line come to, one word each.
func ruled(c *Config) (all []string) {
	for _, r := range c.Egress {
		s := "-" + r.Dest
		if r.Allow {
			s = "+" + r.Dest
		}
		if r.At != "" {
			s += "@" + r.At
		}
		all = append(all, s)
	}
	return all
}

// TestWithRules: the rules of a file stand where its option does among the others, and
// what a client loads stands in the place of all files.
func TestWithRules(t *testing.T) {
	c := mustParse(t, "pasta --allow 10.0.0.1 --rules a --deny private --rules b --deny any")
	a, b := text("a", "# x\nallow 10.0.0.2\r\ndeny 10.0.0.3\n"), text("b", "allow tcp:any:443")
	for _, tt := range []struct {
		make func() (*Config, error)
		want string
	}{
		{func() (*Config, error) { return c, nil }, "+10.0.0.1 -private -any"},
		{func() (*Config, error) { return c.WithRules([]RulesText{a, b}) },
			"+10.0.0.1 +10.0.0.2@a:2 -10.0.0.3@a:3 -private +tcp:any:443@b:1 -any"},
		{func() (*Config, error) { return c.WithRules([]RulesText{a, b, text("c", "deny host")}) },
			"+10.0.0.1 +10.0.0.2@a:2 -10.0.0.3@a:3 -private +tcp:any:443@b:1 -any -host@c:1"},
		{func() (*Config, error) { return c.WithLoaded(b) }, "+10.0.0.1 +tcp:any:443@b:1 -private -any"},
		{func() (*Config, error) {
			with, err := c.WithRules([]RulesText{a, b})
			if err != nil {
				return nil, err
			}
			return with.WithLoaded(b)
		}, "+10.0.0.1 +tcp:any:443@b:1 -private -any"},
		{func() (*Config, error) { return mustParse(t, "pasta --deny host").WithLoaded(b) }, "-host +tcp:any:443@b:1"},
		{func() (*Config, error) { return mustParse(t, "pasta").WithLoaded(b) }, "+tcp:any:443@b:1"},
	} {
		for range 2 { // what is made of c leaves it as it was
			got, err := tt.make()
			if err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(ruled(got), " "); s != tt.want {
				t.Errorf("%q, want %q", s, tt.want)
			}
		}
	}
}

// TestRulesErrors: all that is wrong in all files is told, with the place, and says what
// to do.
func TestRulesErrors(t *testing.T) {
	c := mustParse(t, "pasta --rules a --rules b")
	_, err := c.WithRules([]RulesText{
		text("a", "alow any\nallow\n  allow 10.0.0.1/24 # host bits\nallow icmp:any:5\nallow a b\ndeny tcp:\n"),
		text("b", "--allow any\nallow any x\n"),
	})
	var errs rulesfile.Errors
	if !errors.As(err, &errs) {
		t.Fatalf("%v", err)
	}
	var places []string
	for _, e := range errs {
		place, _, _ := strings.Cut(e.Error(), " ")
		places = append(places, place)
	}
	want := []string{"a:1:1:", "a:2:1:", "a:3:9:", "a:4:7:", "a:5:9:", "a:6:6:", "b:1:1:", "b:2:11:"}
	if !slices.Equal(places, want) {
		t.Errorf("%q, want %q\n%v", places, want, err)
	}
	for _, part := range []string{`"alow" is nothing that a rules file can say (one of: allow, deny, `, "allow needs DEST", "10.0.0.0/24", "icmp has no ports"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in\n%v", part, err)
		}
	}
	for _, line := range []string{"via socks5://192.0.2.9:1080", "via-secret /x", "via-names", "via-except ::1"} {
		if _, err := c.WithRules([]RulesText{text("a", line)}); err == nil || !strings.Contains(err.Error(), "which proxy there is") || !strings.Contains(err.Error(), "on the command line") {
			t.Errorf("%q: %v", line, err)
		}
	}
	for _, empty := range []string{"", "\n", "# deny any\n", "\xef\xbb\xbf \r\n"} {
		if _, err := c.WithRules([]RulesText{text("a", "deny any"), text("b", empty)}); err == nil || !strings.Contains(err.Error(), "b: there is no rule in it") {
			t.Errorf("%q: %v", empty, err)
		}
	}
}

// TestRulesFixed: what only a start can change is refused later, and nothing else.
func TestRulesFixed(t *testing.T) {
	c := mustParse(t, "pasta --rules a")
	load := func(s string) *Config {
		t.Helper()
		next, err := c.WithRules([]RulesText{text("a", s)})
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	now := load("deny any\nnat64 2001:db8:64::/96\n")
	if err := now.Fixed(load("nat64 2001:db8:64::/96\nallow any")); err != nil {
		t.Error(err)
	}
	for _, other := range []string{"deny any", "deny any\nnat64 2001:db8:65::/96"} {
		if err := now.Fixed(load(other)); err == nil || !strings.Contains(err.Error(), "nat64 cannot be changed while") {
			t.Errorf("%q: %v", other, err)
		}
	}
}

// TestRulesLive: redirects and rules for what comes in can be changed where there were
// some, and not come first later.
func TestRulesLive(t *testing.T) {
	for _, tt := range []struct {
		was, is string
		ok      bool
	}{
		{"allow any", "allow any\nredirect 192.0.2.1=192.0.2.2", false}, {"redirect 192.0.2.1=192.0.2.2", "redirect 192.0.2.1=192.0.2.3", true},
		{"redirect 192.0.2.1=192.0.2.2", "allow any", true}, {"allow any", "deny-in any", false}, {"allow-in 192.0.2.1", "deny-in any", true},
		{"limit udp=7", "limit udp=7", true}, {"limit udp=7", "limit udp=8", false}, {"allow any", "names-nxdomain\nallow any", false}, {"names-nxdomain", "names-nxdomain", true},
	} {
		c := mustParse(t, "pasta --rules a")
		was, err := c.WithRules([]RulesText{text("a", tt.was)})
		if err != nil {
			t.Fatal(err)
		}
		is, err := was.WithRules([]RulesText{text("a", tt.is)})
		if err != nil {
			t.Fatal(err)
		}
		if err := was.Fixed(is); (err == nil) != tt.ok {
			t.Errorf("%q to %q: %v", tt.was, tt.is, err)
		}
	}
	c, err := mustParse(t, "pasta --limit udp=7 --rules a").WithRules([]RulesText{text("a", "allow any\nallow-in 192.0.2.1\n")})
	if want := []OtherRule{{"limit udp=7", ""}, {"allow-in 192.0.2.1", "a:2"}}; err != nil || !slices.Equal(c.OtherRules, want) {
		t.Errorf("%+v, %v", c.OtherRules, err)
	}
	if c, err = mustParse(t, "pasta --rules a --redirect 192.0.2.1=192.0.2.2 --deny-in any").WithRules([]RulesText{text("a", "allow-in 192.0.2.1\n# more\nredirect 192.0.2.3=192.0.2.4\n")}); err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, r := range c.Redirects {
		at = append(at, r.String()+" "+r.At)
	}
	for _, r := range c.Ingress {
		at = append(at, r.String()+" "+r.At)
	}
	if want := []string{"--redirect 192.0.2.3=192.0.2.4 a:3", "--redirect 192.0.2.1=192.0.2.2 ", "--allow-in 192.0.2.1 a:1", "--deny-in any "}; !slices.Equal(at, want) {
		t.Errorf("%q, want %q", at, want)
	}
}

// TestVerbs: each row is of an option, and takes back what it has put there: applied
// twice, a command line is what it was.
func TestVerbs(t *testing.T) {
	for i := range verbs {
		v := &verbs[i]
		if v.row() == nil || v.forget == nil {
			t.Errorf("%+v", v)
		}
	}
	c := mustParse(t, "pasta --allow any --deny host --nat64 2001:db8:64::/96")
	for range 3 {
		next, err := c.WithRules(nil)
		if err != nil || len(next.Egress) != 2 || len(next.NAT64) != 1 || !slices.Equal(next.Warnings, c.Warnings) {
			t.Errorf("%+v, %v", next, err)
		}
		c = next
	}
}

// TestCheckRulesOption: operands are files then, and no command; without a file there is
// nothing to check.
func TestCheckRulesOption(t *testing.T) {
	for line, files := range map[string]string{
		"aldente --check-rules a b": "a b", "passt --check-rules a": "a", "pasta --check-rules --rules x": "", "aldente --rules x --check-rules y": "y",
	} {
		c := mustParse(t, line)
		if c.Action != ActionCheckRules || strings.Join(c.CheckFiles, " ") != files || c.Command != nil {
			t.Errorf("%s: %+v", line, c)
		}
	}
	if !mustParse(t, "aldente --json --check-rules a").JSON || !mustParse(t, "aldente --check-rules --json a").JSON {
		t.Error("--json is lost")
	}
	if _, err := parse(t, "aldente --json"); err == nil || !strings.Contains(err.Error(), "--json is for --check-rules") {
		t.Error(err)
	}
	if _, err := parse(t, "aldente --check-rules"); err == nil || !strings.Contains(err.Error(), "no file to check") {
		t.Error(err)
	}
	for line, want := range map[string]bool{"pasta": false, "pasta --rules a": true, "pasta --control /run/s": true, "pasta --control none": false} {
		if got := mustParse(t, line).Reloads(); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
}
