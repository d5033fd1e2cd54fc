// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"aldente/broker/control/api"
	"aldente/broker/rulesfile"
)

var (
	flagKeep = flag{long: "keep", help: "load: flows that the rules refuse go on until they\nend"}
	flagEnd  = flag{long: "end", help: "load: they end, as they do without --keep-flows"}
)

// rules shows what decides where the guest may connect, or does more about it.
func rules(c *call) error {
	what := "show"
	if len(c.args) > 0 {
		what, c.args = c.args[0], c.args[1:]
	}
	least, most := 0, 0
	var run func(*call) error
	switch what {
	case "show":
		run = showRules
	case "load":
		run, least, most = loadRules, 1, 1
	case "suggest":
		run, least, most = suggestRules, 1, 1
	case "test":
		run, least, most = why, 2, 2
	default:
		return c.wrong("'%s' is none of %s", what, strings.Join(c.values, ", "))
	}
	for flag, of := range map[string]string{flagKeep.long: "load", flagEnd.long: "load", flagWildcards.long: "suggest"} {
		if c.has(flag) && what != of {
			return c.wrong("option '--%s' is for %s", flag, of)
		}
	}
	switch {
	case len(c.args) < least && what == "test":
		return c.wrong("PROTO HOST[:PORT] is missing")
	case len(c.args) < least:
		return c.wrong("FILE is missing")
	case most >= 0 && len(c.args) > most:
		return c.wrong("there is nothing that '%s' could mean", c.args[most])
	}
	return run(c)
}

// showRules shows what decides where the guest may connect.
func showRules(c *call) error {
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

// loadRules puts the rules of a file into force.
func loadRules(c *call) error {
	if c.has(flagKeep.long) && c.has(flagEnd.long) {
		return c.wrong("--keep and --end exclude each other")
	}
	text, err := readFile(c.args[0], rulesfile.MaxSize)
	if err != nil {
		return err
	}
	if _, errs := rulesfile.Parse(c.args[0], text); errs != nil {
		return errs // what no instance takes, without asking one
	}
	r := &api.Request{Command: api.Load, Load: &api.LoadSpec{
		Name: c.args[0], Text: string(text), Keep: c.has(flagKeep.long), End: c.has(flagEnd.long),
	}}
	if line, err := json.Marshal(r); err == nil && len(line) >= api.MaxLoad {
		return fmt.Errorf("that are more rules than go into one request (%d bytes of %d)", len(line), api.MaxLoad)
	}
	s, err := c.connectToChange()
	if err != nil {
		return err
	}
	defer s.Close()
	reply, err := s.first(r)
	if err != nil {
		return err
	}
	if reply.Load == nil {
		return errNoAnswer
	}
	if c.has(flagJSON.long) {
		return c.json(reply.Load)
	}
	for _, w := range reply.Load.Warnings {
		fmt.Fprintln(c.errs, cell(w))
	}
	_, err = fmt.Fprintf(c.out, "%d rules are in force, %d flows end.\n", reply.Load.Rules, reply.Load.Ended)
	return err
}

// readFile reads a file of at most max bytes; "-" is standard input.
func readFile(path string, max int64) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s: larger than %d bytes", path, max)
	}
	return b, err
}

// problems is what an instance says of rules that it has not taken.
type problems struct {
	lines []string
	last  string
}

func (p problems) Error() string {
	var b strings.Builder
	for _, l := range p.lines {
		b.WriteString(cell(l) + "\n")
	}
	return b.String() + cell(p.last)
}
