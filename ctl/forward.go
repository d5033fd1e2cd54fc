// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"aldente/broker/control/api"
)

// portLetters are the options of port rules.
const portLetters = "tuTU"

// forward shows or changes port rules.
func forward(c *call) error {
	what, args := c.args[0], c.args[1:]
	switch what {
	case "list":
		if len(args) > 0 {
			return c.wrong("there is nothing that '%s' could mean", args[0])
		}
		return forwards(c)
	case "add", "delete":
	default:
		return c.wrong("'%s' is none of list, add and delete", what)
	}
	specs, err := c.specs(args)
	if err != nil {
		return err
	}
	r := &api.Request{Version: api.Version, Command: api.Forward, Forward: &api.ForwardSpec{Delete: what == "delete", Specs: specs}}
	if line, err := json.Marshal(r); err == nil && len(line) > api.MaxRequest {
		return fmt.Errorf("that are more rules than go into one change (%d bytes of %d): give ranges, or change some at a time", len(line), api.MaxRequest)
	}
	s, err := c.connectToChange()
	if err != nil {
		return err
	}
	defer s.Close()
	reply, err := s.first(r)
	if err == nil && c.has(flagJSON.long) {
		return c.json(reply)
	}
	return err
}

// specs has each specification follow its option. -t is that of those without.
func (c *call) specs(args []string) (all []string, err error) {
	option, used := "-t", true
	for _, arg := range args {
		if len(arg) > 1 && arg[0] == '-' {
			if !used {
				return nil, c.wrong("option requires an argument -- '%c'", option[1])
			}
			option, used = arg[:2], false
			if arg = arg[2:]; arg == "" {
				continue
			}
		}
		all, used = append(all, option+" "+arg), true
	}
	switch {
	case !used:
		return nil, c.wrong("option requires an argument -- '%c'", option[1])
	case len(all) == 0:
		return nil, c.wrong("no ports are given")
	}
	return all, nil
}

// forwards shows the port rules in force.
func forwards(c *call) error {
	reply, err := c.only(&api.Request{Command: api.Forwards})
	if err != nil {
		return err
	}
	if c.has(flagJSON.long) {
		return c.json(append([]api.PortRule{}, reply.Forwards...))
	}
	w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "FROM\tPROTO\tLISTENS ON\tLEADS TO\tPORTS\tOPTION")
	for i := range reply.Forwards {
		r := &reply.Forwards[i]
		from := map[string]string{"in": "host", "out": "guest"}[r.Direction]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", cell(from), cell(r.Protocol), cell(r.Listen), cell(r.Target), cell(portsText(r)), cell(r.Option))
	}
	return w.Flush()
}

// portsText says on how many of its ports a rule listens.
func portsText(r *api.PortRule) string {
	s := fmt.Sprintf("%d of %d", r.Listens, r.Ports)
	if r.Flags != "" {
		s += " (" + r.Flags + ")"
	}
	if r.Dropped > 0 {
		s += fmt.Sprintf(", %d refused", r.Dropped)
	}
	return s
}
