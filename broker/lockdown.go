// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"aldente/policy"
)

// lockDown opens the last files, lets go of the guest's namespaces, which the
// agent has joined, and confines the process.
func (in *instance) lockDown(notify int) error {
	if in.ns != nil {
		in.ns.Close()
	}
	_, _ = time.Now().Zone() // the log's: read from a file, once
	// What start-up has made in the file system a confined process cannot remove:
	// from here on a signal ends an instance that is up, a moment later.
	in.started()
	if notify >= 0 {
		in.out.Prepare()
		var err error
		if in.null, err = leave(); err != nil {
			return err
		}
	}
	if err := in.openResolvConf(); err != nil {
		return err
	}
	in.factory.Confined()
	err := in.tell("broker", in.confine())
	if err == nil {
		in.undo.forget()
		close(in.locked)
	}
	return err
}

// tell reports the layers around a process: those that are missing always, the
// others when debugging. With --strict a missing one is an error.
func (in *instance) tell(component string, report policy.Report) error {
	log := in.log.With("component", component)
	for _, l := range report {
		if l.State == policy.InForce {
			log.Debug(l.String())
		} else {
			log.Warn(l.String())
		}
	}
	if in.cfg.Strict {
		return report.Err()
	}
	return nil
}
