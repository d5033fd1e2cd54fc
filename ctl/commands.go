// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"aldente/broker/cli"
)

// command is one row of the table of which dispatch, usage, completions and the list
// in the manual page are made.
type command struct {
	name   string
	args   string   // placeholders of the operands, as usage has them
	values []string // what the first operand may be, where that is a list
	help   string   // lines after the first are continuations
	flags  []flag   // of its own
	about  about
	least  int // operands; most: -1: any number
	most   int
	short  string            // options of one letter, which are operands
	run    func(*call) error // nil: has its own way with arguments, and its own usage
}

// about says what a command is about, and with that which flags it has besides.
type about int

const (
	oneInstance  about = iota // --json, --pid, --socket
	allInstances              // --json
	noInstance
)

// flag is an option of a command.
type flag struct {
	long   string
	short  byte     // 0: none
	arg    string   // placeholder, "": takes none
	values []string // what arg may be, where that is a list
	file   bool     // arg is a path
	help   string
}

var (
	flagJSON   = flag{long: "json", help: "JSON instead of text"}
	flagPID    = flag{long: "pid", arg: "PID", help: "the instance of that process number"}
	flagSocket = flag{long: "socket", arg: "PATH", file: true, help: "the instance with that socket of --control"}
	flagHelp   = flag{long: "help", short: 'h', help: "print this text and exit"}
)

// commands is set by init, since what prints the table is in it.
var commands []command

func init() {
	commands = []command{
		{name: "list", about: allInstances, run: list,
			help: "instances of this user, as root those of all"},
		{name: "status", run: status,
			help: "what an instance is and how it fares"},
		{name: "flows", args: "[WORD]...", most: -1, flags: flowsFlags, run: flows,
			help: "flows, a line each, as ss(8) has connections;\nonly those with all words"},
		{name: "top", args: "[WORD]...", most: -1, flags: topFlags, run: showTop,
			help: "traffic and flows, live in a terminal"},
		{name: "metrics", run: showMetrics,
			help: "all that is counted, as OpenMetrics text"},
		{name: "exporter", flags: []flag{flagListen}, about: noInstance, run: exporter,
			help: "serve metrics of all instances to Prometheus"},
		{name: "rules", args: "[show|load|suggest|test] [ARG]...", most: -1, values: []string{"show", "load", "suggest", "test"}, run: rules,
			flags: []flag{flagKeep, flagEnd, flagWildcards},
			help:  "where the guest may connect: all rules, in order,\nand how often each has decided; or load FILE, with\n--control, suggest FILE, a record of --audit,\nor test PROTO HOST[:PORT], as why does"},
		{name: "why", args: "PROTO HOST[:PORT]", least: 2, most: 2, values: []string{"tcp", "udp", "icmp"}, run: why,
			help: "what would become of a connection of the guest's,\nstep by step; none is made"},
		{name: "forward", args: "list|add|delete [[-t|-u|-T|-U] SPEC]...", least: 1, most: -1, values: []string{"list", "add", "delete"}, short: portLetters, run: forward,
			help: "show port rules, or add or delete some: that needs\n--control"},
		{name: "log-level", args: "LEVEL", least: 1, most: 1, values: []string{"error", "warning", "info", "debug"}, run: logLevel,
			help: "what the log shows from now on: error, warning,\ninfo or debug; needs --control"},
		{name: "capture", args: "[FILTER]...", most: -1, run: capture, values: []string{"tcp", "udp", "icmp", "arp", "host", "port"},
			flags: []flag{
				{long: "write", short: 'w', arg: "FILE", file: true, help: "write there; -, the default: to standard output"},
				{long: "drops", help: "only frames that were dropped or refused"},
				{long: "snap", arg: "BYTES", help: "so many bytes of each frame, instead of all"},
				{long: "count", arg: "N", help: "end after so many frames"},
			},
			help: "frames of the link as they come, in pcapng, with\nwhy some are dropped and flows refused; FILTER:\ntcp, udp, icmp or arp, host ADDRESS, port NUMBER"},
		{name: "bugreport", run: bugreport, flags: []flag{{long: "redact", help: "replace addresses and search domains"}},
			help: "print what a bug report needs: versions, sandbox,\nand what an instance says of itself"},
		{name: "completion", args: "SHELL", least: 1, most: 1, values: []string{"bash", "zsh", "fish"}, about: noInstance, run: completion,
			help: "print completions for bash, zsh or fish"},
		{name: "pesto", args: "[OPTION]... PATH", about: noInstance,
			help: "show or change port rules, as the program of that\nname does: see \"aldentectl pesto --help\""},
	}
}

// all are a command's flags, the common ones last.
func (c *command) all() []flag {
	if c.run == nil {
		return nil
	}
	all := append([]flag(nil), c.flags...)
	switch c.about {
	case oneInstance:
		all = append(all, flagJSON, flagPID, flagSocket)
	case allInstances:
		all = append(all, flagJSON)
	}
	return append(all, flagHelp)
}

// call is one run of a command.
type call struct {
	*command
	program string
	out     io.Writer // shows nothing that a terminal might take for a command
	errs    io.Writer // likewise
	raw     io.Writer // out as it is, for what is no text
	args    []string
	given   map[string]string // flags, by their names
}

// has tells whether a flag was given.
func (c *call) has(name string) bool {
	_, ok := c.given[name]
	return ok
}

// main runs the command, from the program's arguments to its status.
func (c *command) main(argv []string, out, errs io.Writer) int {
	k := &call{command: c, program: argv[0], out: clean{out}, errs: clean{errs}, raw: out, given: map[string]string{}}
	if err := k.parse(argv[2:]); err != nil {
		return cli.Report(k.errs, err)
	}
	if k.has(flagHelp.long) {
		fmt.Fprint(out, c.usage(argv[0]))
		return 0
	}
	if err := k.run(k); err != nil {
		return cli.Report(k.errs, err)
	}
	return 0
}

// parse takes flags and operands apart, which may come in any order.
func (c *call) parse(args []string) error {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			c.args, args = append(c.args, args...), nil
		case strings.HasPrefix(arg, "--"):
			name, value, has := strings.Cut(arg[2:], "=")
			f := c.flag(name)
			switch {
			case f == nil:
				return c.wrong("unrecognized option '--%s'", name)
			case f.arg == "" && has:
				return c.wrong("option '--%s' doesn't allow an argument", name)
			case f.arg != "" && !has:
				if len(args) == 0 {
					return c.wrong("option '--%s' requires an argument", name)
				}
				value, args = args[0], args[1:]
			}
			c.given[name] = value
		case len(arg) > 1 && arg[0] == '-' && strings.IndexByte(c.short, arg[1]) < 0:
			f := c.shortFlag(arg[1])
			switch {
			case f == nil || f.arg == "" && len(arg) > 2:
				return c.wrong("invalid option '%s'", arg)
			case f.arg != "" && len(arg) == 2:
				if len(args) == 0 {
					return c.wrong("option '%s' requires an argument", arg)
				}
				arg, args = arg+args[0], args[1:]
			}
			c.given[f.long] = arg[2:]
		default:
			c.args = append(c.args, arg)
		}
	}
	switch {
	case c.has(flagHelp.long):
	case len(c.args) < c.least:
		return c.wrong("%s is missing", c.command.args)
	case c.most >= 0 && len(c.args) > c.most:
		return c.wrong("there is nothing that '%s' could mean", c.args[c.most])
	}
	return nil
}

func (c *call) flag(name string) *flag {
	for _, f := range c.all() {
		if f.long == name {
			return &f
		}
	}
	return nil
}

func (c *call) shortFlag(short byte) *flag {
	for _, f := range c.all() {
		if f.short == short {
			return &f
		}
	}
	return nil
}

// names is a flag as usage has it.
func (f *flag) names() string {
	s := "      --" + f.long
	if f.short != 0 {
		s = "  -" + string(f.short) + ", --" + f.long
	}
	return strings.TrimRight(s+" "+f.arg, " ")
}

// wrong is the error for arguments that make no sense.
func (c *call) wrong(format string, args ...any) error {
	return &cli.UsageError{
		Msg:  fmt.Sprintf("%s %s: ", c.program, c.name) + fmt.Sprintf(format, args...),
		Hint: fmt.Sprintf("Try '%s %s --help' for more information.", c.program, c.name),
	}
}

// entry is a line of usage, with its continuations.
func entry(b *strings.Builder, head, help string) {
	if len(head) >= column-1 {
		fmt.Fprintf(b, "%s\n", head)
		head = ""
	}
	for line := range strings.SplitSeq(help, "\n") {
		fmt.Fprintf(b, "%-*s%s\n", column, head, line)
		head = ""
	}
}

// usage is the program's.
func usage(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s COMMAND [ARG]...\n\nLooks at running instances of passt, pasta and aldente, and changes them.\n\nCommands:\n", name)
	for i := range commands {
		c := &commands[i]
		entry(&b, "  "+strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	b.WriteString("\n")
	entry(&b, "  -h, --help", "print this text and exit")
	entry(&b, "      --version", "print the version and exit")
	fmt.Fprintf(&b, "\n\"%s COMMAND --help\" has the options of each.\n", name)
	return b.String()
}

// usage is the command's.
func (c *command) usage(program string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s\n\n", strings.TrimSpace(fmt.Sprintf("%s %s [OPTION]... %s", program, c.name, c.args)))
	b.WriteString(strings.ToUpper(c.help[:1]) + strings.ReplaceAll(c.help[1:], "\n", " ") + ".\n\n")
	for _, f := range c.all() {
		entry(&b, f.names(), f.help)
	}
	if c.about == oneInstance {
		b.WriteString("\nWithout --pid and --socket it is about the one instance that runs.\n")
	}
	return b.String()
}
