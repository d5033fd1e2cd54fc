// SPDX-License-Identifier: Apache-2.0

//go:build captive

package agent

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy/captive"
)

// captiveKind is a record that only test builds know: the name of what captured
// code might try, which the agent does and tells on standard error.
const captiveKind = 0x17f

// Captive has the agent try and says how it ended if that was its end.
func (c *Client) Captive(name string) error {
	b := make([]byte, ipc.HeaderSize, ipc.HeaderSize+len(name))
	binary.LittleEndian.PutUint16(b, captiveKind)
	if err := ipc.Send(c.channel, append(b, name...), -1); err != nil {
		return err
	}
	defer c.heard()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(c.PID(), &ws, 0, nil); err != nil {
		return err
	}
	if ws.Signaled() {
		return fmt.Errorf("%s: killed by %v", name, ws.Signal())
	}
	return nil
}

// captive executes such a record and ends the process.
func (s *server) captive(b []byte) bool {
	if ipc.KindOf(b) != captiveKind {
		return false
	}
	h := captive.Nothing()
	h.Channel, h.Log = s.channel, 2
	for _, t := range s.taps {
		h.Link = t.fd
	}
	name := string(b[ipc.HeaderSize:])
	fmt.Fprintf(os.Stderr, "captive: %s: %s\n", name, captive.Try(name, h))
	unix.Exit(0)
	return true
}
