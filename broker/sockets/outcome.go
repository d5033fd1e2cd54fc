// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/inet"
	"aldente/ipc"
)

// outcome is what has become of one request.
type outcome struct {
	fd         int            // for the worker, -1: there is none
	errno      unix.Errno     // why there is none
	prohibited bool           // it is the egress rules that refuse
	inProgress bool           // TCP: the connect has not ended
	localPort  uint16         // port or echo identifier that the socket has; zero: of no concern
	at         netip.AddrPort // where it leads, if that is not what was decided
	later      bool           // the answer comes by itself, nothing else counts
	wait       bool           // the answer says that another one comes, nothing else counts
	late       bool           // it is that other one
	staged     bool           // the descriptor is an end of a pair: what comes first is looked at
	far        int            // the other end, ours
	answers    int            // above zero: a second socket, for answers to what is sent by the first to a group
	kept       bool           // a copy of the socket stays with us: the descriptor is not to be closed
	names      bool           // it leads to aldente-names, as any of UDP to there does

	limit budget.Reason // why the budget has none; Granted: it has
}

// nothing is the outcome of a request that gets no socket.
func nothing(e unix.Errno) outcome { return outcome{fd: -1, errno: e} }

// made is the outcome of an attempt at a socket.
func made(r inet.Result, localPort uint16) outcome {
	o := outcome{fd: r.FD, inProgress: r.InProgress, localPort: localPort}
	if r.Err != nil {
		o.errno = errno(r.Err)
	}
	return o
}

// record is what the worker is told of it: to is where the socket leads, or was to
// lead, if that was decided.
func (o *outcome) record(token uint64, proto uint8, to netip.AddrPort) ipc.Opened {
	a := ipc.Opened{Token: token, Errno: uint16(o.errno), LocalPort: o.localPort}
	if o.wait {
		return ipc.Opened{Token: token, Flags: ipc.OpenedWait}
	}
	if o.late {
		a.Flags |= ipc.OpenedLate
	}
	if o.staged {
		a.Flags |= ipc.OpenedStaged
	}
	if o.names {
		a.Flags |= ipc.OpenedNames
	}
	if o.inProgress {
		a.Flags |= ipc.OpenedInProgress
	}
	if o.prohibited {
		a.Flags |= ipc.OpenedProhibited
	}
	if o.at.IsValid() {
		to = o.at
	}
	if to.IsValid() {
		a.Addr = to.Addr().As16()
		if proto == ipc.ProtoUDP || proto == ipc.ProtoTCP {
			a.PeerPort = to.Port()
		}
	}
	return a
}

// errno is the error number in err, EIO if there is none.
func errno(err error) unix.Errno {
	var e unix.Errno
	if errors.As(err, &e) && e != 0 {
		return e
	}
	return unix.EIO
}
