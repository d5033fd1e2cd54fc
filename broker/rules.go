// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/control/api"
	"aldente/broker/ingress"
	"aldente/broker/reader"
	"aldente/broker/rulesfile"
)

// withRules is the command line with what the files of --rules say, read as the caller.
func withRules(cfg *cli.Config) (*cli.Config, error) {
	if len(cfg.RuleFiles) == 0 {
		return cfg, nil
	}
	texts, err := readRules(cfg.RuleFiles, guarded(cfg))
	if err != nil {
		return nil, err
	}
	return cfg.WithRules(texts)
}

// readRules reads rules files. All that cannot be read are in the error.
func readRules(paths []string, guarded bool) ([]cli.RulesText, error) {
	texts := make([]cli.RulesText, len(paths))
	var errs rulesfile.Errors
	for i, path := range paths {
		texts[i].Name = path
		var err error
		if texts[i].Text, err = reader.Read(path, rulesfile.MaxSize, guarded); err != nil {
			errs.Add(cannotRead(path, err))
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return texts, nil
}

// cannotRead is the error of a file that is not read.
func cannotRead(path string, err error) *rulesfile.Error {
	e := &rulesfile.Error{File: path, Msg: err.Error()}
	if errno := unix.Errno(0); errors.As(err, &errno) {
		e.Msg = errno.Error()
		switch errno {
		case unix.ENOENT:
			e.Next = "name a file that is there"
		case unix.EACCES, unix.EPERM:
			e.Next = "whoever starts the instance has to be able to read it"
		}
	}
	return e
}

// rules are the egress rules as they are changed while the instance runs.
type rules struct {
	mu     sync.Mutex
	reader *reader.Reader // of the files of --rules, nil: there are none
	asked  chan os.Signal // to read them again

	ingress []ingress.Rule // in force
}

// awaitReloads has the files of --rules read again whenever SIGHUP asks for it. It
// returns at once.
func (in *instance) awaitReloads() {
	if in.rules.reader == nil {
		return
	}
	go func() {
		for range in.rules.asked {
			in.reloadRules()
		}
	}()
}

// prepareRules makes what reads the files again, while this process may.
func (in *instance) prepareRules() (err error) {
	in.rules.ingress = in.cfg.Ingress
	if len(in.cfg.RuleFiles) == 0 {
		return nil
	}
	in.rules.reader, err = reader.New(append([]string(nil), in.cfg.RuleFiles...), rulesfile.MaxSize, guarded(in.cfg))
	return err
}

// reloadRules reads the files of --rules again and puts into force what they say, or
// has the log say why all stays as it is.
func (in *instance) reloadRules() {
	loaded, err := in.reload()
	if err != nil {
		for line := range strings.SplitSeq(withNext(err).Error(), "\n") {
			in.log.Error(line)
		}
		in.log.Error("the egress rules stay as they are")
		return
	}
	in.tellLoaded(loaded)
}

func (in *instance) reload() (*api.LoadReply, error) {
	in.rules.mu.Lock()
	defer in.rules.mu.Unlock()
	files, err := in.rules.reader.Read()
	if err != nil {
		return nil, err
	}
	texts := make([]cli.RulesText, len(files))
	var errs rulesfile.Errors
	for i, f := range files {
		texts[i] = cli.RulesText{Name: in.cfg.RuleFiles[i], Text: f.Text}
		if f.Err != nil {
			errs.Add(cannotRead(in.cfg.RuleFiles[i], f.Err))
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	next, err := in.cfg.WithRules(texts)
	if err != nil {
		return nil, err
	}
	return in.putRules(next, in.cfg.KeepFlows)
}

// loadRules puts the rules of a client's text into force, in the place of those of the
// files of --rules.
func (in *instance) loadRules(l *api.LoadSpec) (*api.LoadReply, error) {
	in.rules.mu.Lock()
	defer in.rules.mu.Unlock()
	next, err := in.cfg.WithLoaded(cli.RulesText{Name: l.Name, Text: []byte(l.Text)})
	if err != nil {
		return nil, err
	}
	return in.putRules(next, in.cfg.KeepFlows && !l.End || l.Keep)
}

// putRules puts other rules into force, all or none, and ends the flows that they
// refuse, unless those are to be kept.
func (in *instance) putRules(next *cli.Config, keep bool) (*api.LoadReply, error) {
	if err := in.cfg.Fixed(next); err != nil {
		return nil, err
	}
	loaded := &api.LoadReply{Warnings: next.Warnings[len(in.cfg.Warnings):]}
	err := in.forward.ChangeRules(func(outbound []cli.Rule) (err error) {
		if in.plan.Ingress == nil {
			loaded.Rules, err = in.plan.ChangeRules(next, outbound)
			return err
		}
		if err := in.factory.ReplaceIngress(next.Ingress); err != nil {
			return err
		}
		if loaded.Rules, err = in.plan.ChangeRules(next, outbound); err != nil {
			return errors.Join(err, in.factory.ReplaceIngress(in.rules.ingress))
		}
		in.rules.ingress = next.Ingress
		return nil
	})
	if err != nil {
		return nil, err
	}
	if in.names != nil {
		in.names.Update()
	}
	in.factory.RulesChanged(keep)
	loaded.Ended = in.recheckAll()
	return loaded, nil
}

// tellLoaded tells the log of rules that are in force.
func (in *instance) tellLoaded(l *api.LoadReply) {
	for _, w := range l.Warnings {
		in.log.Warn(w)
	}
	in.log.Info("egress rules were loaded", "rules", l.Rules, "flows_ended", l.Ended)
}
