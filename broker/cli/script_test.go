// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes the three programs commands of the scripts. They do what the
// broker does before it starts anything, then print what they would do.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pasta": program, "passt": program, "aldente": program})
}

func program() {
	c, err := ParseWith(os.Args, os.Getenv("PORTS"))
	if err != nil {
		os.Exit(Report(os.Stderr, err))
	}
	if text, ok := c.Text(os.Args[0]); ok {
		fmt.Print(text)
		return
	}
	for _, w := range c.Warnings {
		fmt.Fprintln(os.Stderr, w)
	}
	if err := c.Unsupported(); err != nil {
		os.Exit(Report(os.Stderr, err))
	}
	fmt.Printf("%v %d %s %s %q\n", c.Personality, c.Action, c.Target.Path+c.Target.Name, c.Userns, c.Command)
	for _, f := range []Forward{c.TCPPorts, c.UDPPorts, c.TCPNS, c.UDPNS} {
		for i := range f.Rules {
			fmt.Println(&f.Rules[i])
		}
	}
	for _, e := range c.Egress {
		fmt.Println(e.Allow, e.Dest)
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PORTS", e.WorkDir+"/ports")
			e.Setenv("SHELL", "/bin/testsh")
			return os.WriteFile(e.WorkDir+"/ports", []byte("32768\t60999\n"), 0o600)
		},
	})
}
