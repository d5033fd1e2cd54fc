// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
)

// getopt walks argv as getopt_long(3) does, with an option string that begins with
// '+' unless mixed is set. Its complaints are glibc's, so that they read as users know
// them.
type getopt struct {
	table   []option
	in      personalities // whose options are suggested
	warn    func(format string, args ...any)
	argv    []string
	next    int    // index into argv of the next argument
	cluster string // rest of a group of short options

	mixed  bool     // options may stand behind operands
	passed []string // operands that did
}

// option is one row of the option table.
type option struct {
	long  string
	short byte   // 0: none
	arg   string // placeholder for the required argument, "": takes none
	alias string // long name of the row that this one is another name of
	extra bool   // not an option of passt and pasta
	// optional says that the argument may be missing: it is one behind '=' only, and the
	// placeholder is written without brackets.
	optional bool

	in    personalities
	group group
	help  string // "": not listed; lines after the first are continuations
	set   func(p *parser, arg string) error
}

// name is how messages call the option: by its short form, if that is a letter.
func (o *option) name() string {
	if o.short > '9' {
		return "-" + string(o.short)
	}
	return "--" + o.long
}

// same tells whether two names of one option were matched.
func (o *option) same(other *option) bool {
	return o.long == other.alias || o.alias == other.long
}

// scan returns the next option and its argument. After the last one, opt is
// nil and rest returns the operands.
func (g *getopt) scan() (opt *option, arg string, err error) {
	if g.cluster != "" {
		return g.scanShort()
	}
	for g.mixed && g.next < len(g.argv) && !optionLike(g.argv[g.next]) {
		g.passed = append(g.passed, g.argv[g.next])
		g.next++
	}
	if g.next >= len(g.argv) {
		return nil, "", nil
	}
	s := g.argv[g.next]
	switch {
	case s == "--":
		g.next++
		return nil, "", nil
	case !optionLike(s):
		return nil, "", nil
	}
	g.next++
	if s[1] == '-' {
		return g.scanLong(s[2:])
	}
	g.cluster = s[1:]
	g.oneDash(s[1:])
	return g.scanShort()
}

// optionLike tells an option, or what ends them, from an operand.
func optionLike(s string) bool { return len(s) > 1 && s[0] == '-' }

// rest returns the operands.
func (g *getopt) rest() []string {
	if !g.mixed {
		return g.argv[g.next:]
	}
	return append(g.passed, g.argv[g.next:]...)
}

func (g *getopt) scanShort() (*option, string, error) {
	c := g.cluster[0]
	g.cluster = g.cluster[1:]
	opt := g.findShort(c)
	switch {
	case opt == nil:
		return nil, "", g.fail("invalid option -- '%s'", string([]byte{c}))
	case opt.arg == "":
		return opt, "", nil
	case g.cluster != "":
		arg := g.cluster
		g.cluster = ""
		return opt, arg, nil
	}
	arg, ok := g.take()
	if !ok {
		return nil, "", g.fail("option requires an argument -- '%c'", c)
	}
	return opt, arg, nil
}

// scanLong takes what follows the two dashes.
func (g *getopt) scanLong(s string) (*option, string, error) {
	name, value, hasValue := strings.Cut(s, "=")
	found := g.findLong(name)
	switch {
	case len(found) == 0:
		return nil, "", g.unknown(name, s)
	case len(found) > 1:
		var b strings.Builder
		for _, o := range found {
			fmt.Fprintf(&b, " '--%s'", o.long)
		}
		return nil, "", g.fail("option '--%s' is ambiguous; possibilities:%s", s, b.String())
	}
	opt := found[0]
	switch {
	case opt.arg == "" && hasValue:
		return nil, "", g.fail("option '--%s' doesn't allow an argument", opt.long)
	case opt.arg == "" || hasValue || opt.optional:
		return opt, value, nil
	}
	value, ok := g.take()
	if !ok {
		return nil, "", g.fail("option '--%s' requires an argument", opt.long)
	}
	return opt, value, nil
}

func (g *getopt) take() (string, bool) {
	if g.next >= len(g.argv) {
		return "", false
	}
	g.next++
	return g.argv[g.next-1], true
}

func (g *getopt) findShort(c byte) *option {
	for i := range g.table {
		if g.table[i].short == c && c != 0 {
			return &g.table[i]
		}
	}
	return nil
}

// findLong returns the option of that name, or else all that it abbreviates.
// An abbreviation that has a meaning without our own options keeps it.
func (g *getopt) findLong(name string) []*option {
	var found, extra []*option
	for i := range g.table {
		o := &g.table[i]
		switch {
		case o.long == name:
			return []*option{o}
		case !strings.HasPrefix(o.long, name):
		case o.extra:
			extra = append(extra, o)
		case len(found) == 0 || !o.same(found[0]):
			found = append(found, o)
		}
	}
	if len(found) == 0 {
		return extra
	}
	return found
}

func (g *getopt) fail(format string, args ...any) error {
	return &UsageError{
		Msg:  g.argv[0] + ": " + fmt.Sprintf(format, args...),
		Hint: fmt.Sprintf("Try '%s --help' for more information.", g.argv[0]),
	}
}
