// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"encoding/binary"
	"slices"
)

// MaxRules bounds the rules by name of an instance: each name is compared with all.
const MaxRules = 4096

// Rule is what one rule says of names.
type Rule struct {
	Index   int     // among all egress rules, from zero
	Pattern Pattern // what it is for
	Allow   bool    // else it denies
	// Narrow says that the rule is for some ports or one protocol. What it denies may be
	// resolved all the same: the other ports are the rules' behind it.
	Narrow bool
}

// Rules are the rules by name in their order, and what a name gets that none fits.
type Rules struct {
	List    []Rule // the first that fits decides
	Default bool   // resolved
}

// Verdict is what rules say of a name: whether it may be asked for upstream.
type Verdict struct {
	Allowed bool // to be resolved
	Rule    int  // in List; -1: none fits
}

// Judge tells whether a name may be resolved. The first rule that fits decides. A name
// is known by aliases as well, which are those that its answer has led to (CNAME): a rule
// that denies fits by any of them, one that allows by the name that was asked for alone.
func (r *Rules) Judge(name Name, aliases ...Name) Verdict {
	for i := range r.List {
		one := &r.List[i]
		switch {
		case one.Allow:
			if one.Pattern.Matches(name) {
				return Verdict{true, i}
			}
		case !one.Narrow && one.Denies(name, aliases):
			return Verdict{false, i}
		}
	}
	return Verdict{r.Default, -1}
}

// Fitting tells which rules are for a name that is known by aliases as well, whichever
// decides: two names of which it is the same are one to the rules. It means nothing else.
func (r *Rules) Fitting(name Name, aliases ...Name) string {
	var b []byte
	for i := range r.List {
		if one := &r.List[i]; one.Allow && one.Pattern.Matches(name) || !one.Allow && one.Denies(name, aliases) {
			b = binary.LittleEndian.AppendUint16(b, uint16(i))
		}
	}
	return string(b)
}

// Denies tells whether the pattern of a rule that denies fits a name or one of its
// aliases.
func (r *Rule) Denies(name Name, aliases []Name) bool {
	return r.Pattern.Matches(name) || slices.ContainsFunc(aliases, r.Pattern.Matches)
}
