// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"aldente/broker/cli"
	"aldente/broker/supervise"
	"aldente/policy"
)

// defaultFirstOpen is the default of net.ipv4.ip_unprivileged_port_start.
const defaultFirstOpen = 1024

// firstOpen is the first port that everybody may bind on the host.
func firstOpen() uint16 {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return defaultFirstOpen
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16)
	if err != nil {
		return defaultFirstOpen
	}
	return uint16(n)
}

// nobody is the user and group that own nothing.
const nobody = 65534

// firstPrivate is the first of the users that no system gives to anybody: above
// those that distributions, containers and systemd take, and below 2^31. A broker
// that root has started takes its process number beyond it.
const firstPrivate = 0x70000000

// identity is who this process is going to be, with its worker and agent.
type identity struct {
	cli.IDs // whose a command is, and the guest's socket

	// Who the processes are. Nobody is many: who may signal a process or trace it,
	// and who may share a UDP port with it, is decided by the user.
	own cli.IDs
}

// unprivileged is who we are to be: --runas, nobody if root of the whole
// system started us, else who we are. Root of a user namespace stays what it
// is: it has no more than its owner.
func unprivileged(cfg *cli.Config) identity {
	switch {
	case cfg.RunAs != nil:
		return identity{*cfg.RunAs, *cfg.RunAs}
	case os.Geteuid() == 0 && inInitialUserNamespace():
		own := uint32(firstPrivate + os.Getpid())
		return identity{cli.IDs{UID: nobody, GID: nobody}, cli.IDs{UID: own, GID: own}}
	}
	same := cli.IDs{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	return identity{same, same}
}

// changes tells whether that is somebody else than we are.
func (id identity) changes() bool {
	return int(id.UID) != os.Geteuid() || int(id.GID) != os.Getegid()
}

// guarded tells whether this process may do more now than later. Then a file
// that it creates in another user's directory must not turn out, by a link put
// there, to be one of root's own.
func guarded(cfg *cli.Config) bool { return unprivileged(cfg).changes() }

// worker is what a worker is told of it.
func (id identity) worker() *supervise.Identity {
	if !id.changes() {
		return nil
	}
	return &supervise.Identity{UID: int(id.own.UID), GID: int(id.own.GID)}
}

// inInitialUserNamespace tells whether user numbers are what they seem.
func inInitialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

// dropPrivileges becomes who unprivileged said, in all threads. Until dropEffective the
// effective user is the one that the guest's socket is to belong to.
func (in *instance) dropPrivileges(id identity) error {
	if in.cfg.RunAs == nil {
		in.log.Info("started as root, changing to nobody")
	}
	if err := in.factory.Give(int(id.own.UID), int(id.GID)); err != nil {
		return err
	}
	defer policy.Awake()()
	policy.EmptyBoundingSet()
	err := syscall.Setgroups(nil)
	if err == nil && in.kept() != 0 {
		err = policy.KeepThroughSetuid()
	}
	if err == nil {
		err = syscall.Setresgid(int(id.own.GID), int(id.GID), int(id.own.GID))
	}
	if err == nil {
		err = syscall.Setresuid(int(id.own.UID), int(id.UID), int(id.own.UID))
	}
	if err != nil {
		return fmt.Errorf("cannot become user %d, group %d: %w", id.UID, id.GID, err)
	}
	// The change leaves it to fs.suid_dumpable.
	policy.NonDumpable()
	return nil
}

// dropEffective makes the effective user the instance's own as well, in all threads, once
// no file is made any more. What sockets are made from then on, and their ports,
// are that user's alone. The effective group stays: ping sockets are permitted by
// groups, and sysctl net.ipv4.ping_group_range may name that of nobody.
func (id identity) dropEffective() error {
	if id.own.UID == id.UID {
		return nil
	}
	defer policy.Awake()()
	own := int(id.own.UID)
	if err := syscall.Setresuid(own, own, own); err != nil {
		return fmt.Errorf("cannot become user %d: %w", own, err)
	}
	policy.NonDumpable() // the change leaves it to fs.suid_dumpable
	return nil
}
