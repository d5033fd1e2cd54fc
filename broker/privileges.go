// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"aldente/broker/cli"
	"aldente/policy"
)

// firstOpenPort is the default of net.ipv4.ip_unprivileged_port_start.
const firstOpenPort = 1024

// nobody is the user and group that own nothing.
const nobody = 65534

// unprivileged is who we are to be: --runas, nobody if root of the whole
// system started us, else who we are. Root of a user namespace stays what it
// is: it has no more than its owner.
func unprivileged(cfg *cli.Config) cli.IDs {
	switch {
	case cfg.RunAs != nil:
		return *cfg.RunAs
	case os.Geteuid() == 0 && inInitialUserNamespace():
		return cli.IDs{UID: nobody, GID: nobody}
	}
	return cli.IDs{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

// inInitialUserNamespace tells whether user numbers are what they seem.
func inInitialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

// dropPrivileges becomes who unprivileged says, in all threads.
func (in *instance) dropPrivileges() error {
	ids := unprivileged(in.cfg)
	if int(ids.UID) == os.Geteuid() && int(ids.GID) == os.Getegid() {
		return nil
	}
	if in.cfg.RunAs == nil {
		in.log.Info("started as root, changing to nobody")
	}
	defer policy.Awake()()
	policy.EmptyBoundingSet()
	err := syscall.Setgroups(nil)
	if err == nil && in.kept() != 0 {
		err = policy.KeepThroughSetuid()
	}
	if err == nil {
		err = syscall.Setresgid(int(ids.GID), int(ids.GID), int(ids.GID))
	}
	if err == nil {
		err = syscall.Setresuid(int(ids.UID), int(ids.UID), int(ids.UID))
	}
	if err != nil {
		return fmt.Errorf("cannot become user %d, group %d: %w", ids.UID, ids.GID, err)
	}
	return nil
}
