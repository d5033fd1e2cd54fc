// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"aldente/broker/cli"
	"aldente/broker/guestsock"
	"aldente/broker/service"
)

// passed are the sockets that the service manager has opened for this process, as far as
// they have a use.
type passed struct {
	guest *service.Socket  // where virtual machines connect; nil: none
	ports []service.Socket // listeners of -t
}

// fds are their descriptors.
func (p *passed) fds() (fds []int) {
	if p.guest != nil {
		fds = append(fds, p.guest.FD)
	}
	for _, s := range p.ports {
		fds = append(fds, s.FD)
	}
	return fds
}

// takePassed looks which sockets there are, and whether the options have a use for them.
func takePassed(cfg *cli.Config, inherited []int) (p passed, err error) {
	all, err := service.Passed(inherited)
	if err != nil || len(all) == 0 {
		return p, err
	}
	if !cfg.Foreground && cfg.Target.Kind != cli.TargetSpawn {
		return p, fmt.Errorf("%v is for a process that stays in the foreground: add -f", &all[0])
	}
	for i := range all {
		s := &all[i]
		switch {
		case s.Path == "":
			p.ports = append(p.ports, *s)
		case p.guest != nil:
			return p, fmt.Errorf("%v is a second UNIX socket: virtual machines connect to one", s)
		case !cfg.Machine() || cfg.FD >= 0:
			return p, fmt.Errorf("%v is a UNIX socket: that is for virtual machines which connect, by the name passt and without -F", s)
		case cfg.SocketPath != "" && cfg.SocketPath != s.Path:
			return p, fmt.Errorf("%v is at %s, and not at %s: leave -s out", s, s.Path, cfg.SocketPath)
		default:
			p.guest = s
		}
	}
	return p, nil
}

// listenGuest is where virtual machines connect: a socket that was passed on, or one that is
// made here.
func (in *instance) listenGuest() (*guestsock.Server, error) {
	s := in.passed.guest
	if s == nil {
		return guestsock.Listen(in.cfg.SocketPath, in.cfg.LinkKind, in.cfg.OneOff, in.log)
	}
	if st, err := os.Stat(s.Path); err == nil && st.Mode().Perm()&0o077 != 0 {
		in.log.Warn("other users may connect in the virtual machine's place: SocketMode=0600 is needed", "path", s.Path, "mode", fmt.Sprintf("%04o", st.Mode().Perm()))
	}
	server, err := guestsock.Passed(s.FD, s.Path, s.Type, in.cfg.LinkKind, in.cfg.OneOff, in.log)
	if err != nil {
		err = fmt.Errorf("%v: %w", s, err)
	}
	return server, err
}

// listenPorts opens the listeners of -t and -u. A socket that was passed on and that none of
// them is would have clients wait for ever.
func (in *instance) listenPorts() error {
	in.factory.UsePassed(in.passed.ports)
	if err := in.forward.Listen(); err != nil {
		return err
	}
	if left := in.factory.NotUsed(); len(left) > 0 {
		s := &left[0]
		return fmt.Errorf("%v listens at %s, and no -t does just that (%s)", s, s.Where(), passedHint(s))
	}
	return nil
}

// passedHint says what to do about a socket that nothing is for.
func passedHint(s *service.Socket) string {
	addr := s.At.Addr()
	switch {
	case s.Dual:
		return fmt.Sprintf("add -t %d; where IPv4 or IPv6 is off: BindIPv6Only=ipv6-only, or an address in ListenStream=", s.At.Port())
	case addr.Is6() && addr.IsUnspecified():
		return fmt.Sprintf("add -t %d with -6, or take BindIPv6Only= away", s.At.Port())
	case addr.IsUnspecified():
		return fmt.Sprintf("add -t %d with -4, or leave the address out of ListenStream=", s.At.Port())
	case s.Device != "":
		return fmt.Sprintf("add -t %s%%%s/%d", addr, s.Device, s.At.Port())
	}
	return fmt.Sprintf("add -t %s/%d", addr, s.At.Port())
}
