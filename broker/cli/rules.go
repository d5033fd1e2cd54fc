// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"aldente/broker/egress"
	"aldente/broker/rulesfile"
)

// verb is an option that a rules file may have: the line "allow any" says what
// --allow any does. One more is one more row.
type verb struct {
	option string // its long name, and the word that the line begins with

	// forget takes back what it has put into a Config.
	forget func(c *Config)
	// check says what is wrong with an argument, as far as the option's setter leaves
	// that to others. Nil: it leaves nothing.
	check func(arg string) error
	// same is set where the option means something only at the start: whether the
	// second command line may be put into force in an instance of the first. Nil: it
	// may be changed while that runs.
	same func(a, b *Config) bool
}

var verbs = []verb{
	{option: "allow", forget: func(c *Config) { c.Egress = nil }, check: egress.Check},
	{option: "deny", forget: func(c *Config) { c.Egress = nil }, check: egress.Check},
	{option: "allow-in", forget: func(c *Config) { c.Ingress = nil }, same: ingressLives},
	{option: "deny-in", forget: func(c *Config) { c.Ingress = nil }, same: ingressLives},
	{option: "redirect", forget: func(c *Config) { c.Redirects = nil },
		same: func(a, b *Config) bool { return len(a.Redirects) > 0 || len(b.Redirects) == 0 }},
	{option: "limit", forget: func(c *Config) { c.Limits = nil },
		same: func(a, b *Config) bool { return maps.Equal(a.Limits, b.Limits) }},
	{option: "names-nxdomain", forget: func(c *Config) { c.NamesNXDOMAIN = false },
		same: func(a, b *Config) bool { return a.NamesNXDOMAIN == b.NamesNXDOMAIN }},
	{option: "verify-sni", forget: func(c *Config) { c.VerifySNI = nil },
		same: func(a, b *Config) bool { return slices.Equal(a.VerifySNI, b.VerifySNI) }},
	{option: "nat64", forget: func(c *Config) { c.NAT64 = nil },
		same: func(a, b *Config) bool { return slices.Equal(a.NAT64, b.NAT64) }},
}

// ingressLives tells whether rules for what comes in can be changed: only if there were
// some at the start, connections are looked at.
func ingressLives(a, b *Config) bool { return len(a.Ingress) > 0 || len(b.Ingress) == 0 }

// said is an option of a rules file's kind as it was given, in order: with an argument,
// or the place of a file.
type said struct {
	*verb
	arg  string
	file string
}

// RulesText is what a rules file holds.
type RulesText struct {
	Name string // as its user calls it, for messages
	Text []byte // all of it
}

// maxRuleFiles bounds --rules.
const maxRuleFiles = 16

func setRules(p *parser, arg string) error {
	switch {
	case arg == "":
		return nextf("give the name of a file", "Invalid rules file: %s", arg)
	case len(p.c.RuleFiles) == maxRuleFiles:
		return usagef("Too many --rules: at most %d", maxRuleFiles)
	}
	p.c.RuleFiles = append(p.c.RuleFiles, arg)
	p.c.said = append(p.c.said, said{file: arg})
	return nil
}

// say notes an option that a rules file could have said, too.
func (c *Config) say(o *option, arg string) {
	if v := verbOf(o.long); v != nil {
		c.said = append(c.said, said{verb: v, arg: arg})
	}
}

func verbOf(name string) *verb {
	for i := range verbs {
		if verbs[i].option == name {
			return &verbs[i]
		}
	}
	return nil
}

// Reloads tells whether rules may be changed while the instance runs: by SIGHUP, or by
// whoever may use --control.
func (c *Config) Reloads() bool { return len(c.RuleFiles) > 0 || c.Controllable() }

// WithRules is c with what the files of --rules say, each where its option stands
// among the others. texts are those of RuleFiles, and any more stand behind all
// options. The error is of type rulesfile.Errors.
func (c *Config) WithRules(texts []RulesText) (*Config, error) {
	from := *c
	for _, more := range texts[min(len(c.RuleFiles), len(texts)):] {
		from.said = append(slices.Clone(from.said), said{file: more.Name})
	}
	k := -1
	return from.resolve(func(string) *RulesText {
		if k++; k < len(texts) {
			return &texts[k]
		}
		return nil
	})
}

// WithLoaded is WithRules with one text in the place of all files, where the first
// of them stands, or behind all options.
func (c *Config) WithLoaded(text RulesText) (*Config, error) {
	from, used := *c, false
	if len(c.RuleFiles) == 0 {
		from.said = append(slices.Clone(c.said), said{file: text.Name})
	}
	return from.resolve(func(string) *RulesText {
		if used {
			return nil
		}
		used = true
		return &text
	})
}

// resolve makes a Config anew of all that was said.
func (c *Config) resolve(text func(file string) *RulesText) (*Config, error) {
	next := *c
	next.said, next.OtherRules = c.said[:len(c.said):len(c.said)], nil
	next.Warnings = slices.Clone(c.Warnings)
	for i := range verbs {
		verbs[i].forget(&next)
	}
	p := &parser{c: &next, portRange: PortRangeFile}
	var errs rulesfile.Errors
	for _, s := range c.said {
		if s.verb != nil {
			warned := len(next.Warnings) // of which the command line has told
			if err := s.apply(p, s.arg); err != nil {
				return nil, err
			}
			next.Warnings = next.Warnings[:warned]
			next.other(s.verb, s.arg, "")
			continue
		}
		t := text(s.file)
		if t == nil {
			continue
		}
		for _, e := range p.file(t) {
			errs.Add(e)
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return &next, nil
}

// file does what a file says, and returns what of it makes no sense.
func (p *parser) file(t *RulesText) rulesfile.Errors {
	rules, errs := rulesfile.Parse(t.Name, t.Text)
	if len(rules) == 0 && len(errs) == 0 {
		// As while somebody writes it: nobody means by that that all is allowed.
		errs.Add(&rulesfile.Error{File: t.Name, Msg: "there is no rule in it", Next: "\"allow any\" and \"deny any\" say what is meant"})
	}
	for i := range rules {
		if e := p.rule(t.Name, &rules[i]); e != nil {
			errs.Add(e)
		}
	}
	slices.SortStableFunc(errs, func(a, b *rulesfile.Error) int { return a.Line - b.Line })
	return errs
}

// rule does what a line of a file says.
func (p *parser) rule(file string, r *rulesfile.Rule) *rulesfile.Error {
	fail := func(err error) *rulesfile.Error {
		e := &rulesfile.Error{File: file, Line: r.Line, Column: r.Column, Msg: err.Error()}
		if u := (*UsageError)(nil); errors.As(err, &u) {
			e.Next = u.Next
		}
		return e
	}
	v := verbOf(r.Verb)
	if v == nil {
		r.Column = r.Start
		if r.Verb == "via" || strings.HasPrefix(r.Verb, "via-") {
			return fail(nextf("give --"+r.Verb+" on the command line", "which proxy there is, and its password, is settled at the start, and not by rules that may change"))
		}
		return fail(nextf("one of: "+strings.Join(Verbs(), ", "), "%q is nothing that a rules file can say", r.Verb))
	}
	takes := v.row().arg
	switch {
	case r.Arg == "" && takes != "" && !v.row().optional:
		return fail(usagef("%s needs %s", r.Verb, takes))
	case r.Arg != "" && takes == "":
		return fail(usagef("%s has nothing behind it", r.Verb))
	case v.check != nil:
		if err := v.check(r.Arg); err != nil {
			return fail(err)
		}
	}
	warned, had, redirects, incoming := len(p.c.Warnings), len(p.c.Egress), len(p.c.Redirects), len(p.c.Ingress)
	if err := v.apply(p, r.Arg); err != nil {
		return fail(err)
	}
	at := fmt.Sprintf("%s:%d", file, r.Line)
	p.c.other(v, r.Arg, at)
	for i := warned; i < len(p.c.Warnings); i++ {
		p.c.Warnings[i] = at + ": " + p.c.Warnings[i]
	}
	for i := had; i < len(p.c.Egress); i++ {
		p.c.Egress[i].At = at
	}
	for i := redirects; i < len(p.c.Redirects); i++ {
		p.c.Redirects[i].At = at
	}
	for i := incoming; i < len(p.c.Ingress); i++ {
		p.c.Ingress[i].At = at
	}
	return nil
}

// other notes what is no egress rule.
func (c *Config) other(v *verb, arg, at string) {
	if v.option != "allow" && v.option != "deny" {
		c.OtherRules = append(c.OtherRules, OtherRule{rulesfile.Rule{Verb: v.option, Arg: arg}.String(), at})
	}
}

// row is the option's.
func (v *verb) row() *option {
	for i := range options {
		if options[i].long == v.option {
			return &options[i]
		}
	}
	panic("cli: no option --" + v.option)
}

func (v *verb) apply(p *parser, arg string) error { return v.row().set(p, arg) }

// final tells whether nothing that follows on the command line counts.
func (a Action) final() bool {
	switch a {
	case ActionHelp, ActionVersion, ActionCapabilities:
		return true
	}
	return false
}

// checkFiles takes the operands of --check-rules.
func (p *parser) checkFiles(args []string) error {
	if len(args) == 0 && len(p.c.RuleFiles) == 0 {
		return nextf("name one behind it, or with --rules", "--check-rules has no file to check")
	}
	p.c.CheckFiles = args
	return nil
}

// Verbs are the words that lines of a rules file begin with.
func Verbs() (all []string) {
	for i := range verbs {
		all = append(all, verbs[i].option)
	}
	return all
}

// Fixed returns an error if going on with what next says would change something that
// only a start can change. It names the first.
func (c *Config) Fixed(next *Config) error {
	for i := range verbs {
		if v := &verbs[i]; v.same != nil && !v.same(c, next) {
			return fmt.Errorf("%s cannot be changed while the instance runs: leave it as it was, or start the instance again", v.option)
		}
	}
	return nil
}
