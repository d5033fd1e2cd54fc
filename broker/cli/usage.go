// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
)

// Version and Commit are set when the program is linked. Commit is the one of the source,
// in hexadecimal, with "-dirty" where that was changed since; "" where nobody knows.
var (
	Version = "devel"
	Commit  = ""
)

// column is where descriptions begin in the usage text.
const column = 30

var groupTitles = map[group]string{
	general:     "General",
	guest:       "Addresses and routes",
	names:       "Name resolution",
	protocols:   "Protocols",
	translation: "Address translation",
	confinement: "Confinement",
	forwarding:  "Port forwarding",
	namespace:   "Namespaces",
	machine:     "Virtual machines",
}

const specHelp = `
Port specification (SPEC):
  none                 no port
  [LISTEN/]ENTRY,...   LISTEN is ADDR, ADDR%INTERFACE or %INTERFACE
  ENTRY is one of:
    22, 22-25          these ports, to the same ones
    2222:22, 22-25:122-125
                       to other ports, ranges of equal length
    22:ADDR, 22:ADDR/2222
                       to another address, and port, on the guest's side
    ~25, ~20-30        not these ports
    all, all:ADDR      all ports but ephemeral ones, if they can be bound
`

const autoHelp = `    auto               only while the target ports are bound in the namespace
`

const destHelp = `  Without any included range, "all" is meant.

Destination (DEST):
  [tcp:|udp:|icmp:]WHERE[:PORT[-PORT]], WHERE one of:
    ADDR, ADDR/LEN     an address, a network; IPv6 in brackets before a port
    NAME, *.NAME       a name, all names below it; one label: NAME.
    any, host, link-local, private, metadata
                       sets of addresses

Source (SRC):
  [tcp:|udp:]ADDR[/LEN][:PORT[-PORT]], or for ADDR one of: any, host,
  link-local, private. Ports are the guest's.

Redirect (FROM=TO):
  [tcp:|udp:]ADDR[/LEN][:PORT[-PORT]]=ADDR[:PORT], with "any" for ADDR of FROM.

Limits (WHAT=N,...), N or "none":
  sockets              sockets of all kinds, listening ones included
  udp                  UDP ports of the host
  icmp                 echo flows
  half-open            TCP connections that are being set up
  new, new-udp         TCP connections that nobody answers, and UDP flows, a
                       second
  conns                flows at a time
  new-conns            new flows a second, each way
  bytes                bytes a second by the guest's link, each way; k, M and G
                       may follow
`

// Usage returns the text that --help prints for a program called name.
func Usage(p Personality, name string) string {
	if p == Slirp {
		return slirpUsage(name)
	}
	var b strings.Builder
	if p == Passt {
		fmt.Fprintf(&b, "Usage: %s [OPTION]...\n\nConnects a virtual machine to the network, without privileges.\n", name)
	} else {
		fmt.Fprintf(&b, "Usage: %s [OPTION]... [COMMAND [ARG]...]\n", name)
		fmt.Fprintf(&b, "       %s [OPTION]... PID\n", name)
		fmt.Fprintf(&b, "       %s [OPTION]... --netns PATH|NAME\n", name)
		b.WriteString("\nConnects a network namespace to the network, without privileges: a new one for\n" +
			"COMMAND or a shell, that of process PID, or the one given with --netns.\n")
	}
	for g := general; g <= machine; g++ {
		writeGroup(&b, p, g)
	}
	b.WriteString(specHelp)
	if p != Passt {
		b.WriteString(autoHelp)
	}
	b.WriteString(destHelp)
	return b.String()
}

func writeGroup(b *strings.Builder, p Personality, g group) {
	titled := false
	for i := range options {
		o := &options[i]
		if o.group != g || o.help == "" || o.in&p.bit() == 0 {
			continue
		}
		if !titled {
			fmt.Fprintf(b, "\n%s:\n", groupTitles[g])
			titled = true
		}
		writeOption(b, o)
	}
}

func writeOption(b *strings.Builder, o *option) {
	head := "      "
	if o.short != 0 {
		head = fmt.Sprintf("  -%c, ", o.short)
	}
	head += "--" + o.long
	for i := range options {
		if options[i].alias == o.long {
			head += ", --" + options[i].long
		}
	}
	switch {
	case o.optional:
		head += "[=" + o.arg + "]"
	case o.arg != "":
		head += " " + o.arg
	}
	for i, line := range strings.Split(o.help, "\n") {
		switch {
		case i > 0:
			head = ""
		case len(head) > column-2:
			b.WriteString(head + "\n")
			head = ""
		}
		fmt.Fprintf(b, "%-*s%s\n", column, head, line)
	}
}

// VersionText returns what --version prints.
func VersionText(p Personality) string {
	switch p {
	case Aldente:
		return VersionLines("aldente " + Version)
	case Slirp:
		return VersionLines(fmt.Sprintf("slirp4netns version %s (aldente)", Version))
	}
	return VersionLines(fmt.Sprintf("%v %s (aldente)", p, Version))
}

// VersionLines returns what --version prints of any program: its first line, then the
// commit and the license.
func VersionLines(first string) string {
	if Commit != "" {
		first += "\ncommit: " + Commit
	}
	return first + "\nLicensed under the Apache License, Version 2.0. There is no warranty.\n"
}

// Capabilities is what --print-capabilities prints: the description of a
// vhost-user network back-end, as in QEMU's docs/interop/vhost-user.json.
const Capabilities = "{\n  \"type\": \"net\"\n}\n"

// Text returns what an action that only prints has to print. False for those
// that do more.
func (c *Config) Text(name string) (string, bool) {
	switch c.Action {
	case ActionHelp:
		return Usage(c.Personality, name), true
	case ActionVersion:
		return VersionText(c.Personality), true
	case ActionCapabilities:
		return Capabilities, true
	}
	return "", false
}
