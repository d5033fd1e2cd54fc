// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"aldente/ipc"
)

// setUpWorker sends a new worker its start-up records.
func (in *instance) setUpWorker(control int) error {
	<-in.attached
	config := in.configForNew()
	if config == nil {
		return errors.New("there is no link to the guest")
	}
	if err := ipc.Send(control, config.Encode(), -1); err != nil {
		return err
	}
	if err := in.capture.send(control); err != nil {
		return err
	}
	if in.linkFD >= 0 {
		if err := ipc.Send(control, in.link.Encode(), in.linkFD); err != nil {
			return err
		}
	}
	if err := in.forward.SendListeners(control); err != nil {
		return err
	}
	return ipc.Send(control, ipc.Empty(ipc.KindStart), -1)
}

// serveWorker answers a worker's requests. What a guest may have made of its
// worker meanwhile, it finds a broker that is confined.
func (in *instance) serveWorker(control int) error {
	<-in.locked
	return in.factory.Serve(control)
}

// workerEvent takes what a worker tells: its client is gone, or the tap that was passed
// to us.
func (in *instance) workerEvent(code uint32) {
	if in.stream != nil && (code == ipc.EventLinkClosed || code == ipc.EventLinkFailed) {
		in.stream.Closed()
	}
}
