// SPDX-License-Identifier: Apache-2.0

// Command aldentectl speaks to running instances: it finds them, says how they fare
// and changes what may be changed. By the name pesto it is the client of that name: it
// shows and changes the port rules of an instance that was started with -c, of ours
// and of passt's own.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"aldente/broker/cli"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is the program, from its arguments to its status.
func run(argv []string, out, errs io.Writer) int {
	name := argv[0]
	if strings.Contains(name[strings.LastIndexByte(name, '/')+1:], "pesto") {
		return pesto(argv, out, errs)
	}
	if len(argv) < 2 {
		fmt.Fprint(errs, usage(name))
		return 1
	}
	switch argv[1] {
	case "-h", "--help":
		fmt.Fprint(out, usage(name))
		return 0
	case "--version":
		fmt.Fprint(out, version("aldentectl"))
		return 0
	case "pesto":
		return pesto(argv[1:], out, errs)
	}
	for i := range commands {
		if commands[i].name == argv[1] {
			return commands[i].main(argv, out, errs)
		}
	}
	fmt.Fprintf(clean{errs}, "%s: there is no command '%s'\nTry '%s --help' for more information.\n", name, argv[1], name)
	return 1
}

func version(name string) string {
	return cli.VersionLines(fmt.Sprintf("%s %s (aldente)", name, cli.Version))
}
