// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"

	"aldente/broker/cli"
	"aldente/broker/egress"
)

// CheckedRule is an egress rule as it is understood.
type CheckedRule struct {
	Number   int      `json:"number"`             // from 1, in the order in which they are asked
	Rule     string   `json:"rule"`               // in its one form, as a line of a rules file
	From     string   `json:"from"`               // FILE:LINE, option or default
	Warnings []string `json:"warnings,omitempty"` // what may not have been meant, one line each
}

// CheckedRules are the egress rules that a command line comes to, with the defaults of
// its program, and what may be wrong with them.
func CheckedRules(cfg *cli.Config) ([]CheckedRule, error) {
	rules := egressRules(cfg, outbound(cfg))
	from := func(i int) string { return cmp.Or(rules[i].Note, string(rules[i].Source), string(egress.ByOption)) }
	found, err := egress.Lint(rules, func(i int) string {
		if rules[i].Source == egress.ByFile {
			return fmt.Sprintf("%s (rule %d)", from(i), i+1)
		}
		return fmt.Sprintf("rule %d", i+1)
	})
	if err != nil {
		return nil, err
	}
	all := make([]CheckedRule, len(found))
	for i, f := range found {
		all[i] = CheckedRule{i + 1, f.Text, from(i), f.Warnings}
	}
	for _, o := range cfg.OtherRules {
		all = append(all, CheckedRule{len(all) + 1, o.Text, cmp.Or(o.At, string(egress.ByOption)), nil})
	}
	return all, nil
}

// CheckedText is how people read them.
func CheckedText(rules []CheckedRule) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, r := range rules {
		fmt.Fprintf(w, "%d\t%s\t%s\n", r.Number, r.Rule, r.From)
	}
	_ = w.Flush()
	for _, r := range rules {
		for _, text := range r.Warnings {
			fmt.Fprintf(&b, "warning: %s: %s: %s\n", r.From, r.Rule, text)
		}
	}
	return b.String()
}
