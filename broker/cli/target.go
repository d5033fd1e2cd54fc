// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"math"
	"os"
	"strconv"
	"strings"
)

// parseNetns tells a path from a name as ip-netns(8) does: by a slash.
func parseNetns(s string) (Target, error) {
	switch {
	case strings.Contains(s, "/"):
		return Target{Kind: TargetPath, Path: s}, nil
	case s == "" || s == "." || s == "..":
		return Target{}, nextf("give a name that \"ip netns\" lists, or a path with a slash", "Invalid network namespace name or path: %s", s)
	}
	return Target{Kind: TargetName, Name: s}, nil
}

// parsePID reads an operand. known is false if it is no number, hence a command.
func parsePID(s string) (pid int, known bool, err error) {
	n, err := strconv.ParseInt(strings.TrimLeft(s, " \t\n\v\f\r"), 10, 64)
	if err != nil && !isRange(err) {
		return 0, false, nil
	}
	if err != nil || n <= 0 || n > math.MaxInt32 {
		return 0, true, nextf("give that of a running process; a command of that name needs its path", "Invalid PID %s", s)
	}
	return int(n), true, nil
}

// operands decides the target and the command.
func (p *parser) operands(args []string) error {
	c := p.c
	if c.Personality == Passt {
		if len(args) > 0 {
			return nextf("passt runs no command: pasta does", "Extra non-option argument: %s", args[0])
		}
		return nil
	}
	switch {
	case c.Target.Kind != TargetNone && len(args) > 0:
		return nextf("name the namespace once", "Both --netns and PID or command given")
	case c.Target.Kind != TargetNone:
		c.NetnsOnly = c.Userns == ""
	case len(args) == 1:
		pid, known, err := parsePID(args[0])
		if err != nil {
			return err
		}
		if known {
			c.Target = Target{Kind: TargetPID, PID: pid}
			break
		}
		fallthrough
	default:
		c.Target.Kind = TargetSpawn
		if c.Command = args; len(args) == 0 {
			c.Command, c.LoginShell = []string{p.shell()}, true
		}
	}
	if c.Target.Kind == TargetSpawn && (c.Userns != "" || c.NetnsOnly) {
		return nextf("a command gets namespaces of its own: leave the option out, or name a namespace with --netns",
			"--userns and --netns-only are for PID or --netns")
	}
	if c.NoPidns && c.Target.Kind != TargetSpawn {
		return usagef("--no-pidns is incompatible with PID or --netns")
	}
	return nil
}

// shell is what runs when no command is given.
func (p *parser) shell() string {
	if s := os.Getenv("SHELL"); s != "" {
		return s
	}
	return "/bin/sh"
}
