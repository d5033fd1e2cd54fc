// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/control/api"
)

// section is a part of a bug report.
type section struct {
	Title string `json:"title"`
	Text  string `json:"text"`
}

// selfTestTime is how long the self-test may take.
const selfTestTime = 30 * time.Second

// bugreport prints what whoever looks into a fault asks for first.
func bugreport(c *call) error {
	all := []section{{"System", system()}, {"Self-test", selfTestOutput()}}
	r, err := c.choose()
	switch {
	case err == nil:
		all = append(all, ofInstance(r)...)
	case c.has(flagPID.long), c.has(flagSocket.long):
		return err
	default:
		all = append(all, section{"Instance", err.Error() + "\n"})
	}
	note := "It has addresses, names and paths of this system and of the guest (--redact replaces addresses and search domains).\n"
	if c.has("redact") {
		note = "Addresses and search domains are replaced, the same by the same. Paths, port numbers and names of interfaces are not.\n"
		redact := newRedactor()
		if r != nil {
			redact.names = r.status.Search
		}
		for i := range all {
			all[i].Text = redact.text(all[i].Text)
		}
	}
	all = append([]section{{"About", "A report about aldente for whoever looks into a fault: versions, what the sandbox is made of, and what one\n" +
		"instance is told, allows and counts. It has no contents of any packet, no environment and no command's arguments.\n" + note +
		"Read it before you pass it on.\n"}}, all...)
	if c.has(flagJSON.long) {
		return c.json(all)
	}
	for i := range all {
		fmt.Fprintf(c.out, "== %s\n%s\n", all[i].Title, all[i].Text)
	}
	return nil
}

// system is what it runs on.
func system() string {
	var b strings.Builder
	fmt.Fprintf(&b, "aldentectl %s, commit %s, protocol %d\n", cli.Version, cmp.Or(cli.Commit, "unknown"), api.Version)
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(&b, "kernel %s %s %s\n", field(u.Release[:]), field(u.Version[:]), field(u.Machine[:]))
	}
	fmt.Fprintf(&b, "%d processors, user %d, group %d\n", runtime.NumCPU(), os.Geteuid(), os.Getegid())
	for _, file := range []string{
		"/etc/os-release", "/sys/kernel/security/lsm", "/proc/self/uid_map",
		"/proc/sys/kernel/unprivileged_userns_clone", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
		"/proc/sys/user/max_user_namespaces", "/proc/sys/user/max_net_namespaces", "/proc/sys/net/ipv4/ip_unprivileged_port_start",
		"/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/ping_group_range", "/proc/sys/net/ipv6/conf/all/disable_ipv6",
		"/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/core/wmem_max", "/proc/sys/net/core/rmem_max", "/proc/sys/fs/suid_dumpable",
	} {
		text, err := head(file)
		if err != nil {
			text = cause(err).Error()
		}
		if file == "/etc/os-release" {
			for line := range strings.Lines(text) {
				if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
					text = name
				}
			}
		}
		fmt.Fprintf(&b, "%s: %s\n", file, strings.Join(strings.Fields(text), " "))
	}
	if st, err := os.Stat("/dev/net/tun"); err == nil {
		fmt.Fprintf(&b, "/dev/net/tun: %v\n", st.Mode())
	} else {
		fmt.Fprintf(&b, "/dev/net/tun: %v\n", cause(err))
	}
	return b.String()
}

// head is the beginning of a file.
func head(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	return string(b), err
}

// field is a string of uname.
func field(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// selfTestOutput is what the program beside this one says of its sandbox.
func selfTestOutput() string {
	self, err := os.Executable()
	if err != nil {
		return err.Error() + "\n"
	}
	ctx, end := context.WithTimeout(context.Background(), selfTestTime)
	defer end()
	run := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "aldente"), "--self-test")
	run.WaitDelay = time.Second
	out, err := run.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s%v\n", out, err)
	}
	return string(out)
}

// ofInstance is what an instance says.
func ofInstance(r *running) []section {
	all := []section{{"Status", statusText(r.status)}}
	for _, q := range []struct{ title, command string }{
		{"Egress rules", api.Rules}, {"Port rules", api.Forwards}, {"Counters", api.Counters},
	} {
		all = append(all, section{q.title, asked(r.path, q.command)})
	}
	for _, file := range []string{"limits", "status"} {
		text, err := head(fmt.Sprintf("/proc/%d/%s", r.pid, file))
		if err != nil {
			text = cause(err).Error() + "\n"
		}
		all = append(all, section{"Process " + file, text})
	}
	return all
}

// asked is what an instance answers, as JSON, or why it does not.
func asked(path, command string) string {
	s, err := connect(path, answerTime)
	if err != nil {
		return err.Error() + "\n"
	}
	defer s.Close()
	reply, err := s.first(&api.Request{Command: command})
	var b strings.Builder
	for ; err == nil; reply, err = s.next() {
		text, _ := json.MarshalIndent(reply, "", " ")
		b.WriteString(string(text) + "\n")
	}
	if !errors.Is(err, io.EOF) {
		fmt.Fprintln(&b, err)
	}
	return cmp.Or(b.String(), "nothing\n")
}
