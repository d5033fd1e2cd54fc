// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"aldente/broker/control/api"
)

const (
	lookupTime = 5 * time.Second
	mostLooked = 8 // addresses of one name that are asked about
)

// explained is what one target comes to.
type explained struct {
	Target api.Target `json:"target"`
	Allow  bool       `json:"allow"`
	Steps  []api.Step `json:"steps"`
}

// why explains what would become of a connection of the guest's.
func why(c *call) error {
	t, err := c.target()
	if err != nil {
		return err
	}
	in, err := c.choose()
	if err != nil {
		return err
	}
	all, looked, err := explain(in.path, t)
	if err != nil {
		return err
	}
	if c.has(flagJSON.long) {
		return c.json(all)
	}
	if looked {
		var addrs []string
		for i := range all {
			addrs = append(addrs, all[i].Target.Address)
		}
		fmt.Fprintf(c.out, "%s is %s, asked here on the host. The guest asks its own resolver.\n\n", cell(t.Name), strings.Join(addrs, ", "))
	}
	for i := range all {
		if i > 0 {
			fmt.Fprintln(c.out)
		}
		w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
		for n, s := range all[i].Steps {
			fmt.Fprintf(w, "%d\t%s\t%s\n", n+1, cell(s.What), cell(s.Result))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// explain has an instance explain a target. Of names, only one with rules by name knows
// anything: for others a name stands for all addresses that it has here, which are
// looked up.
func explain(path string, t *api.Target) (all []explained, looked bool, err error) {
	targets := []api.Target{*t}
	if t.Name != "" {
		steps, err := ask(path, t)
		if err != nil {
			return nil, false, err
		}
		if looked = len(steps) == 0; looked {
			if targets, err = lookUp(t); err != nil {
				return nil, false, err
			}
		}
	}
	for i := range targets {
		steps, err := ask(path, &targets[i])
		if err != nil {
			return nil, false, err
		}
		n := len(steps)
		if n == 0 || !steps[n-1].Final {
			return nil, false, errNoAnswer
		}
		all = append(all, explained{Target: targets[i], Allow: steps[n-1].Allow, Steps: steps})
	}
	return all, looked, nil
}

// ask returns the steps of one answer.
func ask(path string, t *api.Target) ([]api.Step, error) {
	s, err := connect(path, answerTime)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	reply, err := s.first(&api.Request{Command: api.Why, Target: t})
	if err != nil {
		return nil, err
	}
	return reply.Why, nil
}

// target reads PROTO and HOST:PORT, for icmp HOST.
func (c *call) target() (t *api.Target, err error) {
	t = &api.Target{Protocol: c.args[0]}
	host := c.args[1]
	switch t.Protocol {
	case "tcp", "udp":
		var port string
		if host, port, err = net.SplitHostPort(c.args[1]); err != nil {
			return nil, c.wrong("'%s' is not HOST:PORT (IPv6 addresses in brackets)", c.args[1])
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, c.wrong("'%s' is no port", port)
		}
		t.Port = uint16(n)
	case "icmp":
		if _, _, err := net.SplitHostPort(host); err == nil {
			return nil, c.wrong("'%s' has a port, which icmp does not: give HOST", host)
		}
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	default:
		return nil, c.wrong("'%s' is none of tcp, udp and icmp", t.Protocol)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		t.Address = a.WithZone("").Unmap().String()
	} else {
		t.Name = host
	}
	return t, nil
}

// lookUp returns targets for the addresses that a target's name has here.
func lookUp(t *api.Target) (all []api.Target, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.Name)
	if err != nil {
		return nil, fmt.Errorf("%s has no address here on the host (%w): give the one that the guest has for it", t.Name, err)
	}
	for _, a := range found {
		one := api.Target{Protocol: t.Protocol, Address: a.WithZone("").Unmap().String(), Port: t.Port}
		if !slices.Contains(all, one) && len(all) < mostLooked {
			all = append(all, one)
		}
	}
	return all, nil
}
