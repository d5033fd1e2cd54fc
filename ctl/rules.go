// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"text/tabwriter"

	"aldente/broker/control/api"
)

// rules shows what decides where the guest may connect.
func rules(c *call) error {
	reply, err := c.only(&api.Request{Command: api.Rules})
	if err != nil {
		return err
	}
	if len(reply.Rules) == 0 {
		return errNoAnswer // there are always some
	}
	if c.has(flagJSON.long) {
		return c.json(reply.Rules)
	}
	w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "#\tHITS\tSOURCE\tRULE\tNOTE")
	for _, r := range reply.Rules {
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\n", r.Number, r.Hits, cell(r.Source), cell(r.Text), cell(r.Note))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.out, "The first that fits decides. Hits are connections and flows that were asked for.")
	return err
}
