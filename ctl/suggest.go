// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"

	"aldente/broker/audit"
)

var flagWildcards = flag{long: "wildcards", arg: "N", help: "suggest: *.DOMAIN instead of N names or more of it"}

// suggestRules makes a rules file of a record of --audit.
func suggestRules(c *call) error {
	wildcards := 0
	if text, ok := c.given[flagWildcards.long]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 2 {
			return c.wrong("--%s takes a number, at least 2, not '%s'", flagWildcards.long, text)
		}
		wildcards = n
	}
	f := os.Stdin
	if path := c.args[0]; path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return err
		}
		defer f.Close()
	}
	entries, bad, err := audit.Read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", c.args[0], err)
	}
	if bad > 0 {
		fmt.Fprintf(c.errs, "%s: %d lines are none of a record, and are left out\n", cell(c.args[0]), bad)
	}
	_, err = c.out.Write(audit.Suggest(entries, wildcards))
	return err
}
