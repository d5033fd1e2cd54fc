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
	targets, name, err := c.targets()
	if err != nil {
		return err
	}
	in, err := c.choose()
	if err != nil {
		return err
	}
	var all []explained
	for i := range targets {
		e, err := ask(in.path, &targets[i])
		if err != nil {
			return err
		}
		all = append(all, *e)
	}
	if c.has(flagJSON.long) {
		return c.json(all)
	}
	if name != "" {
		var addrs []string
		for i := range targets {
			addrs = append(addrs, targets[i].Address)
		}
		fmt.Fprintf(c.out, "%s is %s, asked here on the host. The guest asks its own resolver.\n\n", cell(name), strings.Join(addrs, ", "))
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

// ask has an instance explain a target.
func ask(path string, t *api.Target) (*explained, error) {
	s, err := connect(path, answerTime)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	reply, err := s.first(&api.Request{Command: api.Why, Target: t})
	if err != nil {
		return nil, err
	}
	n := len(reply.Why)
	if n == 0 || !reply.Why[n-1].Final {
		return nil, errNoAnswer
	}
	return &explained{Target: *t, Allow: reply.Why[n-1].Allow, Steps: reply.Why}, nil
}

// targets reads PROTO and HOST:PORT, for icmp HOST. A name stands for all its
// addresses.
func (c *call) targets() (all []api.Target, name string, err error) {
	t := api.Target{Protocol: c.args[0]}
	host := c.args[1]
	switch t.Protocol {
	case "tcp", "udp":
		var port string
		if host, port, err = net.SplitHostPort(c.args[1]); err != nil {
			return nil, "", c.wrong("'%s' is not HOST:PORT (IPv6 addresses in brackets)", c.args[1])
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, "", c.wrong("'%s' is no port", port)
		}
		t.Port = uint16(n)
	case "icmp":
		if _, _, err := net.SplitHostPort(host); err == nil {
			return nil, "", c.wrong("'%s' has a port, which icmp does not: give HOST", host)
		}
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	default:
		return nil, "", c.wrong("'%s' is none of tcp, udp and icmp", t.Protocol)
	}
	addrs, name, err := lookUp(host)
	if err != nil {
		return nil, "", err
	}
	for _, a := range addrs {
		t.Address = a.String()
		all = append(all, t)
	}
	return all, name, nil
}

// lookUp returns the addresses of a host, and its name if it was one.
func lookUp(host string) (addrs []netip.Addr, name string, err error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.WithZone("").Unmap()}, "", nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, "", fmt.Errorf("%s has no address here on the host (%w): give the one that the guest has for it", host, err)
	}
	for _, a := range found {
		if a = a.WithZone("").Unmap(); !slices.Contains(addrs, a) && len(addrs) < mostLooked {
			addrs = append(addrs, a)
		}
	}
	return addrs, host, nil
}
