// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc"
)

// open carries out requests for sockets. The last answers may wait for the next message.
func (s *server) open(b []byte) error {
	for ; len(b) > 0; b = b[ipc.AgentOpenSize:] {
		if err := s.openOne(b[:ipc.AgentOpenSize]); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) openOne(b []byte) error {
	var o ipc.AgentOpen
	if err := o.Decode(b); err != nil {
		return err
	}
	opened := ipc.AgentOpened{ID: o.ID}
	fd, err := openSocket(&o)
	if err != nil {
		opened.Errno = errno(err)
	}
	s.held = append(s.held, answer{opened.Encode(), fd})
	if len(s.held) < maxHeld {
		return nil
	}
	return s.answer()
}

// answer sends the answers held back.
func (s *server) answer() (err error) {
	for _, a := range s.held {
		if err == nil {
			err = ipc.Send(s.channel, a.rec, a.fd)
		}
		if a.fd >= 0 {
			unix.Close(a.fd)
		}
	}
	s.held = s.held[:0]
	return err
}

// openSocket makes the socket that a request describes, as far as that has to be
// done in here: what is to be connected the broker goes on with.
func openSocket(o *ipc.AgentOpen) (int, error) {
	v4 := o.Flags&ipc.AgentOpenIPv4 != 0
	if o.Flags&ipc.AgentOpenBind == 0 {
		return inet.Bare(o.Proto, v4)
	}
	at := netip.AddrPortFrom(netip.AddrFrom16(o.Local), o.LocalPort)
	if v4 {
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte(o.Local[12:])), o.LocalPort)
	}
	var path inet.Path
	if o.Flags&ipc.AgentOpenDevice != 0 {
		path.Device = "lo"
	}
	if o.Flags&ipc.AgentOpenListen == 0 {
		if o.Proto != ipc.ProtoUDP {
			return -1, unix.EINVAL
		}
		// It answers from a listener's port.
		answers := inet.Flow{Path: path, From: at, Sharing: inet.SharedAndOpen}
		r := answers.Bind()
		return r.FD, r.Err
	}
	listener := inet.Listener{Path: path, At: at, Dual: o.Flags&ipc.AgentOpenDual != 0, Beside: o.Flags&ipc.AgentOpenBeside != 0}
	if o.Proto == ipc.ProtoUDP {
		return listener.ListenUDP()
	}
	return listener.ListenTCP()
}
