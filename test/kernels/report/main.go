// SPDX-License-Identifier: Apache-2.0

// Command report is started by ../run.sh in the repository's root. With -save it keeps
// what a virtual machine has written, from standard input, as a file, and fails if
// something went wrong there that the run does not expect. Without, it makes
// docs/kernels.md anew of the files.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"aldente/test/kernels"
)

func main() {
	save := flag.String("save", "", "the `folder` to keep the results in")
	name := flag.String("name", "", "the `run`")
	flag.Parse()
	var err error
	if *save == "" {
		err = document()
	} else {
		err = keep(*save, *name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// document makes the tables anew.
func document() error {
	text, err := kernels.Document(".")
	if err != nil {
		return err
	}
	return os.WriteFile("docs/kernels.md", []byte(text), 0o644)
}

// keep saves what one machine has said and looks at it.
func keep(dir, name string) error {
	runs, err := kernels.Read(name, os.Stdin)
	if err != nil {
		return err
	}
	listed, err := kernels.List("test/kernels/runs")
	if err != nil {
		return err
	}
	var all []string
	for _, run := range runs {
		for _, l := range run.Lines["log"] {
			fmt.Println(l)
		}
		if err := write(filepath.Join(dir, run.Name+".txt"), run); err != nil {
			return err
		}
		for _, l := range listed {
			if l.Name == run.Name {
				run.Tell(l)
			}
		}
		faults, err := run.Faults()
		if err != nil {
			return err
		}
		for _, f := range faults {
			all = append(all, run.Name+": "+f)
		}
	}
	if len(all) > 0 {
		return fmt.Errorf("\n\t%s", strings.Join(all, "\n\t"))
	}
	return nil
}

func write(file string, run *kernels.Run) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return run.Write(f)
}
