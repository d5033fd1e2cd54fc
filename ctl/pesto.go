// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"aldente/broker/cli"
	"aldente/broker/control/wire"
	"aldente/broker/foreign"
	"aldente/ipc"
)

// patience is how long the instance may take: it has one client after the other.
const patience = time.Minute

// theirRules is how many rules of a table passt's own programs take.
const theirRules = 255

// pesto is the program of that name.
func pesto(argv []string, out, errs io.Writer) int {
	opts, operands, err := scan(argv)
	if err != nil {
		return cli.Report(errs, err)
	}
	c := client{out: out, errs: errs}
	var changes []given
	for _, o := range opts {
		switch o.act {
		case actHelp:
			fmt.Fprint(out, pestoUsage(argv[0]))
			return 0
		case actVersion:
			fmt.Fprint(out, version("pesto"))
			return 0
		case actShow:
			c.show = true
		case actDebug:
			c.debug = true
		default:
			changes = append(changes, o)
		}
	}
	if len(operands) != 1 || operands[0] == "" {
		fmt.Fprint(errs, pestoUsage(argv[0]))
		return 1
	}
	c.path = operands[0]
	if err := c.run(changes); err != nil {
		return cli.Report(errs, err)
	}
	return 0
}

// client is one transaction with an instance.
type client struct {
	out, errs   io.Writer
	path        string
	show, debug bool

	tables  []wire.Table
	mode    action // what specifications do: actAdd, actDelete, or actSpec: replace
	cleared map[uint8]bool
}

// say tells what is done, if anybody wants to know.
func (c *client) say(format string, args ...any) {
	if c.debug {
		fmt.Fprintln(c.errs, foreign.Line(fmt.Sprintf(format, args...)))
	}
}

func dial(path string) (net.Conn, error) { return dialFor(path, patience) }

// dialFor waits where as many others wait for the instance as may, which connect does
// not do by itself for a socket that does not block.
func dialFor(path string, patience time.Duration) (conn net.Conn, err error) {
	for until := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err = net.DialTimeout("unix", path, patience)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(until) {
			return conn, err
		}
	}
}

func (c *client) run(changes []given) error {
	conn, err := dial(c.path)
	if err != nil {
		return failf("Failed to connect to %s: %v", c.path, cause(err))
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	c.say("connected to %s", c.path)
	if c.tables, err = wire.ReadHello(bufio.NewReader(conn)); err != nil {
		return fmt.Errorf("%s: %w", c.path, refusal(err))
	}
	for i := range c.tables {
		t := &c.tables[i]
		c.say("%s: table %d, %d rules, capabilities %#x", t.Name, t.ID, len(t.Rules), uint32(t.Caps))
	}
	if len(changes) == 0 {
		c.print("passt/pasta")
		return nil
	}
	if c.show {
		c.print("Previous")
	}
	if err := c.apply(changes); err != nil {
		return err
	}
	if err := c.send(conn.(*net.UnixConn)); err != nil {
		return err
	}
	if c.show {
		c.print("Updated")
	}
	return nil
}

// refusal explains why an instance has not said who it is.
func refusal(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return errors.New("it does not speak to this process (only its own user and root may change it, in the network namespace that it was started in, not in its guest)")
	case errors.Is(err, wire.ErrMalformed):
		return errors.New(foreign.Line(err.Error()))
	}
	return err
}

// failf is a message in the words of passt's client.
func failf(format string, args ...any) error {
	return &cli.UsageError{Msg: fmt.Sprintf(format, args...)}
}

// cause is what the kernel has said.
func cause(err error) error {
	if e := syscall.Errno(0); errors.As(err, &e) {
		return e
	}
	return err
}

// send sends all tables and learns what has become of them.
func (c *client) send(conn *net.UnixConn) error {
	if _, err := conn.Write(wire.AppendTables(nil, c.tables)); err != nil {
		return fmt.Errorf("%s: %w", c.path, cause(err))
	}
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("%s: %w", c.path, cause(err))
	}
	err := wire.ReadAnswer(conn)
	refused := (*wire.Refusal)(nil)
	switch {
	case err == nil:
		c.say("the rules are in force")
		return nil
	case errors.As(err, &refused):
		return errors.New(foreign.Line(refused.Reason))
	case errors.Is(err, wire.ErrUnanswered), errors.Is(err, syscall.ECONNRESET):
		if many := slices.IndexFunc(c.tables, func(t wire.Table) bool { return len(t.Rules) > theirRules }); many >= 0 {
			return fmt.Errorf("%s has more than %d rules, and %s does not say whether it took them", c.tables[many].Name, theirRules, c.path)
		}
		c.say("%s: %v", c.path, wire.ErrUnanswered)
		return nil
	}
	return fmt.Errorf("%s: %w", c.path, err)
}

// apply carries out what was asked for, in order, on the tables here.
func (c *client) apply(changes []given) error {
	c.mode, c.cleared = actSpec, map[uint8]bool{}
	for _, g := range changes {
		var err error
		switch g.act {
		case actAdd, actDelete:
			c.mode = g.act
		case actClear:
			err = c.clear(g.value)
		default:
			err = c.spec(g)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *client) table(id uint8) *wire.Table {
	if i := slices.IndexFunc(c.tables, func(t wire.Table) bool { return t.ID == id }); i >= 0 {
		return &c.tables[i]
	}
	return nil
}

func (c *client) clear(name string) error {
	for i := range c.tables {
		if t := &c.tables[i]; t.Name == name {
			t.Rules, c.cleared[t.ID] = nil, true
			return nil
		}
	}
	return failf("Unsupported pif name %s", name)
}

// spec carries out one of -t, -u, -T and -U.
func (c *client) spec(g given) error {
	id := uint8(wire.Host)
	if g.outbound {
		id = wire.Splice
	}
	t := c.table(id)
	if t == nil && g.outbound {
		return failf("Can't use %s, no outbound interface", g.name())
	}
	if t == nil {
		return failf("Can't use %s, no inbound interface", g.name())
	}
	if c.mode == actSpec && !c.cleared[id] {
		t.Rules, c.cleared[id] = nil, true
	}
	if g.value == "none" {
		if c.mode == actDelete || len(t.Rules) > 0 {
			return fmt.Errorf("%s none conflicts with previous options", g.name())
		}
		return nil
	}
	o := cli.SpecOptions{
		Proto: g.proto, Outbound: g.outbound, Auto: t.Caps&wire.CapScan != 0,
		IPv4Only: t.Caps&wire.CapIPv6 == 0, IPv6Only: t.Caps&wire.CapIPv4 == 0,
		Ephemeral: cli.EphemeralPorts(cli.PortRangeFile),
	}
	if need := map[uint8]wire.Caps{ipc.ProtoTCP: wire.CapTCP, ipc.ProtoUDP: wire.CapUDP}[g.proto]; t.Caps&need == 0 {
		return failf("Can't use %s, the protocol is disabled there", g.name())
	}
	rules, err := cli.ParseSpec(g.value, o)
	if err != nil {
		return err
	}
	for i := range rules {
		r := &rules[i]
		if r.Interface != "" && t.Caps&wire.CapInterfaces == 0 {
			return failf("No rules for interfaces there: %s", show(r))
		}
		if c.mode == actDelete {
			err = remove(t, r)
		} else {
			err = add(t, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add adds a rule, unless it is there.
func add(t *wire.Table, r *cli.Rule) error {
	if slices.Contains(t.Rules, *r) {
		return nil
	}
	rules, err := cli.AddRules(t.Rules, []cli.Rule{*r})
	if err != nil {
		return fmt.Errorf("%s\nUnable to add rule %s", foreign.Line(err.Error()), show(r))
	}
	t.Rules = rules
	return nil
}

// remove takes a rule away, which has to be there as it is.
func remove(t *wire.Table, r *cli.Rule) error {
	i := slices.Index(t.Rules, *r)
	if i < 0 {
		return failf("Couldn't find forwarding rule to delete: %s\nUnable to delete rule %s", show(r), show(r))
	}
	t.Rules = slices.Delete(t.Rules, i, i+1)
	return nil
}

// print shows all tables as passt's client does.
func (c *client) print(which string) {
	fmt.Fprintf(c.out, "%s configuration (%s)\n", which, c.path)
	for i := range c.tables {
		t := &c.tables[i]
		fmt.Fprintf(c.out, "  %s\n", foreign.Line(t.Name))
		for j := range t.Rules {
			fmt.Fprintf(c.out, "    %s\n", foreign.Line(show(&t.Rules[j])))
		}
	}
}

// show is a rule as passt's client writes it, spaces included.
func show(r *cli.Rule) string {
	bare := *r
	bare.Weak, bare.Auto = false, false
	s := bare.String() + " "
	if r.Weak {
		s += " (best effort)"
	}
	if r.Auto {
		s += " (auto-scan)"
	}
	return s
}
