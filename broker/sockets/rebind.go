// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc/sock"
)

// Strayed tells whether the interface that a listener is bound to has another name than it
// had, which is returned, or has gone: "". A socket stays with the interface that it was
// bound to. One of the service manager's stays as it is: what to bind anew is its choice.
func (f *Factory) Strayed(l *Listener) (name string, strayed bool) {
	if l.Interface == "" || l.Namespace || l.Passed {
		return "", false
	}
	name, err := sock.GetsockoptString(l.FD, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	if err != nil {
		return "", true
	}
	return name, name != l.Interface && (name == "" || name != inet.InterfaceName(l.Interface))
}

// Rebind binds a listener anew, to the interface that has the name now, and closes the
// socket that it had. The identifier stays. After an error all is as it was, for another
// try: there may be no such interface at the moment.
func (f *Factory) Rebind(l Listener) (Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.listeners[l.ID]; !ok {
		return l, unix.EBADF
	}
	fd, err := f.bindListener(&l, false)
	if err != nil {
		return l, err
	}
	if l.Proto == unix.IPPROTO_TCP {
		sock.Shutdown(l.FD, unix.SHUT_RDWR) // the worker has it too
	}
	unix.Close(l.FD)
	l.FD = fd
	f.listeners[l.ID] = l
	if l.Guarded {
		delete(f.gate.refused, l.ID)
		f.gate.add(&l)
	}
	return l, nil
}
