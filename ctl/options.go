// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"aldente/broker/cli"
	"aldente/ipc"
)

// option is one row of pesto's table.
type option struct {
	long  string
	short byte   // 0: none
	arg   string // placeholder of the argument, "": takes none
	help  string // lines after the first are continuations

	act      action
	proto    uint8 // of a specification
	outbound bool
}

// action is what an option asks for.
type action int

const (
	actAdd action = iota
	actDelete
	actClear
	actSpec
	actShow
	actDebug
	actHelp
	actVersion
)

var options = []option{
	{long: "add", short: 'A', act: actAdd, help: "add what follows to the rules, instead of\nreplacing them"},
	{long: "delete", short: 'D', act: actDelete, help: "delete what follows from the rules"},
	{long: "clear", short: 'C', arg: "PIF", act: actClear, help: "delete all rules of HOST (-t, -u) or SPLICE\n(-T, -U)"},
	{long: "tcp-ports", short: 't', arg: "SPEC", act: actSpec, proto: ipc.ProtoTCP,
		help: "forward TCP ports of the host to the guest, SPEC\nas in passt(1) and pasta(1), repeatable"},
	{long: "udp-ports", short: 'u', arg: "SPEC", act: actSpec, proto: ipc.ProtoUDP, help: "the same for UDP"},
	{long: "tcp-ns", short: 'T', arg: "SPEC", act: actSpec, proto: ipc.ProtoTCP, outbound: true,
		help: "forward TCP ports of the namespace's loopback to\nthe host's"},
	{long: "udp-ns", short: 'U', arg: "SPEC", act: actSpec, proto: ipc.ProtoUDP, outbound: true, help: "the same for UDP"},
	{long: "show", short: 's', act: actShow, help: "show all rules, before and after a change"},
	{long: "debug", short: 'd', act: actDebug, help: "tell what is done"},
	{long: "help", short: 'h', act: actHelp, help: "print this text and exit"},
	{long: "version", act: actVersion, help: "print the version and exit"},
}

// name is how messages call the option.
func (o *option) name() string {
	if o.short != 0 {
		return "-" + string(o.short)
	}
	return "--" + o.long
}

// given is an option as it was given.
type given struct {
	*option
	value string
}

// scan takes options and operands apart as getopt_long(3) does: options may follow
// operands, short ones cluster, long ones may be abbreviated.
func scan(argv []string) (opts []given, operands []string, err error) {
	fail := func(format string, args ...any) ([]given, []string, error) {
		return nil, nil, &cli.UsageError{
			Msg:  argv[0] + ": " + fmt.Sprintf(format, args...),
			Hint: fmt.Sprintf("Try '%s --help' for more information.", argv[0]),
		}
	}
	rest := argv[1:]
	for len(rest) > 0 {
		arg := rest[0]
		rest = rest[1:]
		switch {
		case arg == "--":
			return opts, append(operands, rest...), nil
		case strings.HasPrefix(arg, "--"):
			name, value, has := strings.Cut(arg[2:], "=")
			found := long(name)
			switch {
			case len(found) == 0:
				return fail("unrecognized option '--%s'", name)
			case len(found) > 1:
				return fail("option '--%s' is ambiguous", name)
			case found[0].arg == "" && has:
				return fail("option '--%s' doesn't allow an argument", found[0].long)
			case found[0].arg != "" && !has:
				if len(rest) == 0 {
					return fail("option '--%s' requires an argument", found[0].long)
				}
				value, rest = rest[0], rest[1:]
			}
			opts = append(opts, given{found[0], value})
		case len(arg) > 1 && arg[0] == '-':
			for cluster := arg[1:]; cluster != ""; {
				o := short(cluster[0])
				if o == nil {
					return fail("invalid option -- '%c'", cluster[0])
				}
				value := cluster[1:]
				cluster = value
				if o.arg != "" {
					if cluster = ""; value == "" {
						if len(rest) == 0 {
							return fail("option requires an argument -- '%c'", o.short)
						}
						value, rest = rest[0], rest[1:]
					}
				} else {
					value = ""
				}
				opts = append(opts, given{o, value})
			}
		default:
			operands = append(operands, arg)
		}
	}
	return opts, operands, nil
}

func short(c byte) *option {
	for i := range options {
		if options[i].short == c && c != 0 {
			return &options[i]
		}
	}
	return nil
}

// long returns the option of that name, or else all that it abbreviates.
func long(name string) (found []*option) {
	for i := range options {
		switch o := &options[i]; {
		case o.long == name:
			return []*option{o}
		case strings.HasPrefix(o.long, name):
			found = append(found, o)
		}
	}
	return found
}

// column is where descriptions begin in the usage text.
const column = 30

func pestoUsage(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s [OPTION]... PATH\n\n", name)
	b.WriteString("Shows or changes the port rules of the instance of passt, pasta or aldente that\nwas started with \"-c PATH\".\n\n")
	for i := range options {
		o := &options[i]
		head := "      --" + o.long
		if o.short != 0 {
			head = fmt.Sprintf("  -%c, --%s", o.short, o.long)
		}
		if o.arg != "" {
			head += " " + o.arg
		}
		for line := range strings.SplitSeq(o.help, "\n") {
			fmt.Fprintf(&b, "%-*s%s\n", column, head, line)
			head = ""
		}
	}
	b.WriteString("\nWithout -A and -D, the rules of each PIF that is named are replaced. A port\nthat cannot be had leaves all rules as they were, and the status is 1.\n")
	return b.String()
}
