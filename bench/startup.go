// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"aldente/bench/report"
	"aldente/test/netlab"
)

// startups times a command that ends at once, in a namespace that is made,
// configured and connected for it.
func startups(o options, lab *netlab.Lab, t *report.Table) {
	for range 10 {
		for _, c := range contestants(o) {
			if o.mode && c.binary != "" {
				slirpStartup(lab, t, c)
				continue
			}
			if c.binary == "" || c.name == "slirp4netns" { // which runs no command
				continue
			}
			args := append(append([]string{c.binary}, netlab.NoForward()...), "--config-net", "--", "true")
			start := time.Now()
			p := lab.Host.Start(netlab.Spec{Args: args, User: netlab.Nobody, Timeout: 10 * time.Second})
			if p.Wait() == 0 {
				t.Add("start-up of --config-net -- true", "ms", c.name, float64(time.Since(start))/1e6)
			}
		}
	}
}

// slirpStartup times a start until the ready descriptor says that the namespace is
// configured and connected.
func slirpStartup(lab *netlab.Lab, t *report.Table, c contestant) {
	hold := holder(lab)
	defer hold.Kill()
	ready, theirs, err := os.Pipe()
	if err != nil {
		lab.TB.Fatalf("%v", err)
	}
	defer ready.Close()
	cmd := exec.Command(c.binary, "-c", "-r", "3", fmt.Sprint(hold.PID), "tap0")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !netlab.Nested() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}
	}
	start := time.Now()
	err = lab.Host.Do(cmd.Start)
	theirs.Close()
	if err != nil {
		lab.TB.Fatalf("%v", err)
	}
	_ = ready.SetReadDeadline(start.Add(10 * time.Second))
	if n, _ := ready.Read(make([]byte, 1)); n == 1 {
		t.Add("start to ready, with -c", "ms", c.name, float64(time.Since(start))/1e6)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
