// SPDX-License-Identifier: Apache-2.0

// Command seeds writes the seeds of every target as files for libFuzzer, in a
// folder for each target: what the target adds itself, captures among it, and
// what is in its testdata/fuzz.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"aldente/fuzz"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage, in the module's root: seeds FOLDER")
		os.Exit(2)
	}
	dir, err := filepath.Abs(os.Args[1])
	last := ""
	for _, t := range fuzz.Targets() {
		if err == nil && t.Package != last {
			err = added(dir, t.Package)
			last = t.Package
		}
		if err == nil {
			err = native(dir, t)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// added has the targets of a package write the seeds that they add themselves.
func added(dir, pkg string) error {
	run := exec.Command("go", "test", "-count=1", "-run", "^Fuzz", "./"+pkg)
	run.Env = append(os.Environ(), fuzz.SeedDir+"="+dir)
	if out, err := run.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", pkg, err, out)
	}
	return nil
}

// native converts those of testdata/fuzz.
func native(dir string, t fuzz.Target) error {
	files, err := filepath.Glob(filepath.Join(t.Package, "testdata/fuzz", t.Name, "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		args, err := fuzz.ParseSeed(text)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		b, err := fuzz.LibFuzzer(args)
		if err == nil {
			err = fuzz.WriteSeed(filepath.Join(dir, t.Name), b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}
