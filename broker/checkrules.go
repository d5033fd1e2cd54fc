// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"aldente/broker/cli"
	"aldente/broker/plan"
	"aldente/broker/rulesfile"
)

// checkRules is --check-rules: it prints the rules as they are understood and returns
// the exit status. Each file among the operands makes a set of rules of its own, with
// those of the options.
func checkRules(cfg *cli.Config) int {
	sets := [][]string{cfg.RuleFiles}
	if len(cfg.CheckFiles) > 0 {
		sets = nil
		for _, f := range cfg.CheckFiles {
			sets = append(sets, append(append([]string(nil), cfg.RuleFiles...), f))
		}
	}
	if cfg.JSON {
		return checkJSON(os.Stdout, cfg, sets)
	}
	status, gap := 0, ""
	for _, paths := range sets {
		rules, warnings, err := checked(cfg, paths)
		if err != nil {
			status = cli.Report(os.Stderr, err)
			continue
		}
		fmt.Print(gap, plan.CheckedText(rules))
		for _, w := range warnings {
			fmt.Printf("warning: %s\n", w)
		}
		gap = "\n"
	}
	return status
}

// checked are the rules of files that make one set, and what may be wrong with what is no
// rule by itself.
func checked(cfg *cli.Config, paths []string) ([]plan.CheckedRule, []string, error) {
	texts, err := readRules(paths, false)
	if err != nil {
		return nil, nil, err
	}
	next, err := cfg.WithRules(texts)
	if err != nil {
		return nil, nil, err
	}
	rules, err := plan.CheckedRules(next)
	return rules, next.Warnings[len(cfg.Warnings):], err
}

// checkedSet is what --json says of one set of rules.
type checkedSet struct {
	Files    []string           `json:"files"`    // of --rules, and the operand
	Rules    []plan.CheckedRule `json:"rules"`    // none where there is an error
	Warnings []string           `json:"warnings"` // about what is no rule by itself, one line each
	Errors   []checkedError     `json:"errors"`
}

// checkedError says what is wrong in which place.
type checkedError struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`   // from 1; missing: the file as a whole
	Column  int    `json:"column,omitempty"` // from 1, in bytes
	Message string `json:"message"`
	Next    string `json:"next,omitempty"` // what to do about it
}

// checkJSON writes a list of sets.
func checkJSON(w io.Writer, cfg *cli.Config, sets [][]string) (status int) {
	all := []checkedSet{}
	for _, paths := range sets {
		rules, warnings, err := checked(cfg, paths)
		one := checkedSet{Files: append([]string{}, paths...), Rules: append([]plan.CheckedRule{}, rules...),
			Warnings: append([]string{}, warnings...), Errors: []checkedError{}}
		var errs rulesfile.Errors
		switch {
		case errors.As(err, &errs):
			for _, e := range errs {
				one.Errors = append(one.Errors, checkedError{e.File, e.Line, e.Column, e.Msg, e.Next})
			}
		case err != nil:
			one.Errors = append(one.Errors, checkedError{Message: err.Error()})
		}
		if err != nil {
			status = 1
		}
		all = append(all, one)
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", b)
	}
	if err != nil {
		return cli.Report(os.Stderr, err)
	}
	return status
}
