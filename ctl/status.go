// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"aldente/broker/control/api"
)

// list shows all instances.
func list(c *call) error {
	all, _, err := instances()
	if err != nil {
		return err
	}
	if c.has(flagJSON.long) {
		list := make([]*api.StatusReply, 0, len(all))
		for i := range all {
			list = append(list, all[i].status)
		}
		return c.json(list)
	}
	w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PID\tUSER\tPROGRAM\tAGE\tGUEST\tADDRESSES")
	for i := range all {
		s := all[i].status
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\t%s\n", all[i].pid, s.User, cell(s.Personality), age(s.Started), cell(s.Guest), cell(strings.Join(s.Addresses, " ")))
	}
	return w.Flush()
}

// cell is what others say, in a table.
func cell(s string) string {
	return cmp.Or(strings.Map(func(r rune) rune {
		switch r {
		case '\t', '\n', '\v', '\f', '\r':
			return ' '
		}
		return r
	}, s), "-")
}

// age is the time since then, in two units.
func age(started string) string {
	t, err := time.Parse(time.RFC3339, started)
	if err != nil {
		return "?"
	}
	s := int64(max(time.Since(t), 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// status shows one instance.
func status(c *call) error {
	r, err := c.choose()
	if err != nil {
		return err
	}
	if c.has(flagJSON.long) {
		return c.json(r.status)
	}
	fmt.Fprint(c.out, statusText(r.status))
	return nil
}

// statusText is a screen about an instance.
func statusText(s *api.StatusReply) string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s%s\n", what, cell(fmt.Sprintf(format, args...)))
	}
	line("program", "%s %s, process %d of user %d, for %s", s.Personality, s.Version, s.PID, s.User, age(s.Started))
	worker := "none at the moment"
	if s.WorkerPID > 0 {
		worker = fmt.Sprintf("process %d", s.WorkerPID)
	}
	line("worker", "%s, replaced %d times", worker, s.Restarts)
	if s.LastDeath != "" {
		line("last death", "%s", s.LastDeath)
	}
	if n := s.Names; n != nil {
		process := "none at the moment"
		if n.PID > 0 {
			process = fmt.Sprintf("process %d", n.PID)
		}
		line("names", "%s, replaced %d times, asks %s", process, n.Restarts, cmp.Or(strings.Join(n.Resolvers, " "), "nobody"))
	}
	if p := s.Proxy; p != nil {
		line("proxy", "%s", proxyText(p))
	}
	if n := s.Network; n != nil {
		text := "follows the host's, by " + n.Template
		if !n.Connected {
			text = "follows the host's, which is not connected"
		}
		if text += fmt.Sprintf(", changed %d times", n.Changes); n.LastChange != "" {
			text += ", last " + n.LastChange
		}
		line("network", "%s", text)
	}
	connected := "connected"
	if !s.Connected {
		connected = "not connected"
	}
	line("guest", "%s", s.Guest)
	line("link", "%s, %s", s.Link, connected)
	if s.Interface != "" {
		line("interface", "%s", s.Interface)
	}
	mtu := "not told"
	if s.MTU > 0 {
		mtu = strconv.Itoa(s.MTU)
	}
	line("MTU", "%s", mtu)
	for _, l := range []struct {
		what string
		all  []string
	}{{"addresses", s.Addresses}, {"gateways", s.Gateways}, {"resolvers", s.Resolvers}, {"search", s.Search}} {
		line(l.what, "%s", strings.Join(l.all, " "))
	}
	line("egress", "%s", s.Egress)
	line("log level", "%s", s.LogLevel)
	control := cmp.Or(s.ControlPath, "none")
	if s.Control && s.ControlPath == "" {
		control = "this socket"
	}
	line("control", "%s", control)
	for i, l := range s.Limits {
		what := ""
		if i == 0 {
			what = "limits"
		}
		most := "any number"
		if l.Max > 0 {
			most = strconv.FormatUint(l.Max, 10)
		}
		line(what, "%s: %d of %s, %d refused", l.Name, l.Used, most, l.Refused)
	}
	return b.String()
}

// proxyText is a line about the proxy.
func proxyText(p *api.ProxyReply) string {
	s := p.URL
	if !strings.HasSuffix(s, p.Address) { // it has a name
		s += " at " + p.Address
	}
	if p.Names {
		s += ", is told names"
	}
	if len(p.Except) > 0 {
		s += ", but for " + strings.Join(p.Except, " ")
	}
	return fmt.Sprintf("%s: %d connected, %d refused, %d failed, %d waiting", s, p.Connected, p.Refused, p.Failed, p.Waiting)
}

// logLevel changes what the log shows.
func logLevel(c *call) error {
	s, err := c.connectToChange()
	if err != nil {
		return err
	}
	defer s.Close()
	reply, err := s.first(&api.Request{Command: api.LogLevel, Level: c.args[0]})
	if err == nil && c.has(flagJSON.long) {
		return c.json(reply)
	}
	return err
}
