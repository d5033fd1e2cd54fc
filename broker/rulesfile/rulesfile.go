// SPDX-License-Identifier: Apache-2.0

// Package rulesfile reads and prints the form of a rules file: which words stand in
// which line. What the words mean, those know who know the options: package cli.
//
//	file    = { line "\n" }
//	line    = [ rule ] [ comment ]
//	rule    = verb [ argument ]
//	comment = "#" anything, at the beginning of a line or behind a space
//
// Words are separated by spaces or tabs, a line may end with a carriage return, and a
// byte order mark may come first. So files are as they are elsewhere, whichever editor
// has written them.
package rulesfile

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Bounds on a file.
const (
	MaxSize  = 256 << 10 // bytes
	MaxLine  = 1024      // bytes of a line, without its end
	MaxRules = 4096      // lines that are not empty
	// MaxErrors is how many errors are told of one file.
	MaxErrors = 100
)

// Rule is a line that says something.
type Rule struct {
	Verb   string // not empty, without spaces
	Arg    string // the same, or empty: there is none
	Line   int    // from 1
	Start  int    // where Verb begins, in bytes, from 1
	Column int    // where Arg begins; of Verb where there is none
}

// String returns the rule as it is written.
func (r Rule) String() string {
	if r.Arg == "" {
		return r.Verb
	}
	return r.Verb + " " + r.Arg
}

// Error says what is wrong in which place.
type Error struct {
	File   string // as its user calls it
	Line   int    // from 1; zero: the file as a whole
	Column int    // from 1, in bytes
	Msg    string // what
	Next   string // what to do about it, empty: Msg says it all
}

// Error returns it in one line, as compilers have it.
func (e *Error) Error() string {
	s := e.File + ": " + e.Msg
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
	}
	if e.Next != "" {
		s += " (" + e.Next + ")"
	}
	return s
}

// Errors are all of a file, in order, a line each.
type Errors []*Error

func (e Errors) Error() string {
	var b strings.Builder
	for i, one := range e {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Error())
	}
	return b.String()
}

// Add appends an error, or notes that there are more than are told.
func (e *Errors) Add(one *Error) {
	switch n := len(*e); {
	case n < MaxErrors:
		*e = append(*e, one)
	case n == MaxErrors:
		*e = append(*e, &Error{File: one.File, Line: one.Line, Column: one.Column, Msg: "too many errors, there may be more"})
	}
}

// Parse takes the text of a file apart. name is what errors call it.
func Parse(name string, text []byte) ([]Rule, Errors) {
	var rules []Rule
	var errs Errors
	if len(text) > MaxSize {
		errs.Add(&Error{File: name, Msg: fmt.Sprintf("larger than %d bytes", MaxSize), Next: "use networks and wildcards instead of lists"})
		return nil, errs
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	for number := 1; len(text) > 0; number++ {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		r, err := parseLine(bytes.TrimSuffix(line, []byte("\r")))
		switch {
		case err != nil:
			err.File, err.Line = name, number
			errs.Add(err)
		case r.Verb == "":
		case len(rules) == MaxRules:
			errs.Add(&Error{File: name, Line: number, Column: 1, Msg: fmt.Sprintf("more than %d rules", MaxRules), Next: "use networks and wildcards instead of lists"})
			return rules, errs
		default:
			r.Line = number
			rules = append(rules, r)
		}
	}
	return rules, errs
}

// parseLine reads a line without its end. An empty Verb: it says nothing.
func parseLine(line []byte) (r Rule, err *Error) {
	if len(line) > MaxLine {
		return r, &Error{Column: MaxLine + 1, Msg: fmt.Sprintf("a line of more than %d bytes", MaxLine), Next: "a rule has a line of its own"}
	}
	for at := 0; ; {
		for at < len(line) && blank(line[at]) {
			at++
		}
		if at == len(line) || line[at] == '#' {
			return r, nil
		}
		start := at
		for at < len(line) && !blank(line[at]) {
			at++
		}
		word := line[start:at]
		if i := bytes.IndexFunc(word, strange); i >= 0 {
			c, _ := utf8.DecodeRune(word[i:])
			e := &Error{Column: start + i + 1, Msg: fmt.Sprintf("%+q does not belong here", c)}
			if c >= utf8.RuneSelf && c != utf8.RuneError {
				e.Next = "names are written in their ASCII form, xn--..."
			}
			return Rule{}, e
		}
		switch {
		case r.Verb == "":
			r.Verb, r.Start, r.Column = string(word), start+1, start+1
		case r.Arg == "":
			r.Arg, r.Column = string(word), start+1
		default:
			return Rule{}, &Error{Column: start + 1, Msg: fmt.Sprintf("%q is one word too many", word), Next: "a rule has a line of its own, and a comment begins with #"}
		}
	}
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// strange tells whether a character is none of those that rules consist of.
func strange(c rune) bool { return c <= ' ' || c >= 0x7f }

// Print is the inverse of Parse: the text of a file with these rules.
func Print(rules []Rule) []byte {
	var b bytes.Buffer
	for _, r := range rules {
		b.WriteString(r.String())
		b.WriteByte('\n')
	}
	return b.Bytes()
}
