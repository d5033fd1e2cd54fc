// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/guestsock"
	"aldente/broker/netns"
	"aldente/ipc/sock"
)

// usable looks at what options name outside of the command line, before anything
// is made: an error says what to do instead. What may come to work later is a
// warning.
func usable(cfg *cli.Config) error {
	if ids := cfg.RunAs; ids != nil && int(ids.UID) != os.Geteuid() && os.Geteuid() != 0 && !maySetuid() {
		return fmt.Errorf("--runas: only root can run as another user: start as root, or leave it out")
	}
	kind, err := guestsock.Usable(cfg.FD, cfg.LinkKind)
	if err != nil {
		return err
	}
	cfg.LinkKind = kind
	for _, a := range []netip.Addr{cfg.Outbound4, cfg.Outbound6} {
		if a.IsValid() && notOurs(a) {
			cfg.Warnings = append(cfg.Warnings, fmt.Sprintf("-o %s is no address of this host (see \"ip address\"): until it is one, no connection can be opened", a))
		}
	}
	return nil
}

// maySetuid tells whether a process that is not root may become another user.
func maySetuid() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective>>unix.CAP_SETUID&1 != 0
}

// notOurs tells whether an address cannot be that of a socket of ours.
func notOurs(a netip.Addr) bool {
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: a.As16()})
	if a.Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4()}
	}
	fd, err := sock.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return errors.Is(sock.Bind(fd, sa), unix.EADDRNOTAVAIL)
}

// explain adds to an error what to do about it.
func explain(err error) error {
	failed := (*netns.ExecError)(nil)
	if !errors.As(err, &failed) {
		return err
	}
	switch {
	case !strings.Contains(failed.Path, "/") && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES)):
		return fmt.Errorf("%w (is it installed, in PATH, and executable?)", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w (is it there, and the interpreter that it names?)", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (it has to be executable: chmod +x)", err)
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("%w (it is no program of this architecture)", err)
	}
	return err
}
