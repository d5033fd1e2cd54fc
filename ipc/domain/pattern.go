// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"errors"
	"fmt"
	"strings"
)

// Pattern is a name, or "*." and a name: all names below that one, at any depth, and
// not the name itself. The zero value matches nothing.
type Pattern struct {
	name  Name
	below bool // all that are below
}

// What ParsePattern does not take, besides what Parse does not.
var (
	errStarAlone  = errors.New(`"*" is no pattern: "any" means all`)
	errStarInside = errors.New(`a star stands for whole labels, and only in front: "*.suffix" is all names below the suffix`)
)

// ParsePattern reads a pattern, in any case, with or without a trailing dot. An error
// says what to do about it.
func ParsePattern(s string) (Pattern, error) {
	bare := s
	rest, below := strings.CutPrefix(s, "*.")
	if below {
		bare = rest
	}
	switch {
	case s == "*" || below && strings.Trim(rest, ".") == "":
		return Pattern{}, errStarAlone
	case strings.Contains(bare, "*"):
		return Pattern{}, errStarInside
	}
	n, err := Parse(bare)
	switch {
	case err != nil:
		return Pattern{}, err
	case below && len(n)+len("*.") > MaxName:
		return Pattern{}, errLong
	case numeric(n.last()):
		// No top-level domain is (RFC 3696 section 2), and what was meant is an address.
		return Pattern{}, fmt.Errorf("no name ends in a number: an IPv4 address has four of them, with dots between")
	}
	return Pattern{n, below}, nil
}

func numeric(label string) bool { return strings.Trim(label, "0123456789") == "" }

// Matches tells whether the pattern stands for n.
func (p Pattern) Matches(n Name) bool {
	if !p.below {
		return p.name == n && n != ""
	}
	at := len(n) - len(p.name) - 1
	return at > 0 && n[at] == '.' && n[at+1:] == p.name
}

// String is the pattern as ParsePattern reads it, MaxName octets at most.
func (p Pattern) String() string {
	if p.below {
		return "*." + string(p.name)
	}
	return string(p.name)
}

// Covers tells whether the pattern stands for all names that another one stands for.
func (p Pattern) Covers(o Pattern) bool {
	if !o.below {
		return p.Matches(o.name)
	}
	return p.below && (p.name == o.name || p.Matches(o.name))
}
