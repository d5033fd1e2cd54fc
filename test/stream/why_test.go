// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/machine"
	"aldente/test/netlab"
)

// TestWhyTellsTheTruth: what aldentectl explains of a machine's connections is what
// becomes of them.
func TestWhyTellsTheTruth(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, at := range []string{"192.0.2.9:7", "[2001:db8:1::9]:7"} {
		go netlab.Echo(lab.Remote.Listen("tcp", at))
	}
	for _, at := range []string{"127.0.0.1:8000", "[::1]:8000"} {
		go netlab.Echo(lab.Host.Listen("tcp", at))
	}
	const open, prohibited, refused = "open", "prohibited", "refused"
	const mapped = "--map-host-loopback 2001:db8:1::77"
	gw4, host6 := netlab.Gateway4+":8000", "[2001:db8:1::77]:8000"
	for _, tt := range []struct {
		args string
		want map[string]string
	}{
		{mapped, map[string]string{"192.0.2.9:7": open, "[2001:db8:1::9]:7": open, gw4: open, host6: open, "192.0.2.9:8": refused}},
		{mapped + " --deny host --allow 192.0.2.9 --deny 192.0.2.0/24 --deny tcp:[2001:db8:1::9]:7", map[string]string{
			"192.0.2.9:7": open, "[2001:db8:1::9]:7": prohibited, gw4: prohibited, host6: prohibited, "192.0.2.77:7": prohibited, "192.0.2.9:8": refused}},
		{"--deny any", map[string]string{"192.0.2.9:7": prohibited, "[2001:db8:1::9]:7": prohibited, gw4: prohibited}},
		{"-4 --no-map-gw --deny 192.0.2.9", map[string]string{"192.0.2.9:7": prohibited}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			p := start(t, lab.For(t), strings.Fields(tt.args)...)
			g := p.join(t, 1500)
			for to, want := range tt.want {
				allow, verdict := because(t, lab, p, to)
				if got := connects(g.NS, to); got != want || allow == (want == prohibited) ||
					(want == prohibited) != strings.HasPrefix(verdict, `refused by "--deny `) {
					t.Errorf("%s is %s, want %s, explained as %q", to, got, want, verdict)
				}
			}
		})
	}
}

// because asks why, as the instance's user.
func because(t *testing.T, lab *netlab.Lab, p *passt, to string) (allow bool, verdict string) {
	t.Helper()
	c := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{
		filepath.Join(netlab.Stage(), "aldentectl"), "why", "--json", "--pid", strconv.Itoa(p.PID), "tcp", to}})
	var all []struct {
		Allow bool
		Steps []api.Step
	}
	if st, err := c.Wait(), json.Unmarshal([]byte(c.Stdout()), &all); st != 0 || err != nil || len(all) != 1 || len(all[0].Steps) == 0 {
		t.Fatalf("why %s: status %d, %v: %s", to, st, err, c.Output())
	}
	return all[0].Allow, all[0].Steps[len(all[0].Steps)-1].Result
}

// connects is what becomes of a connection from a namespace.
func connects(ns *netlab.NS, to string) string {
	c, err := ns.DialError("tcp", to, 5*time.Second)
	host, _, _ := net.SplitHostPort(to)
	barred := syscall.EACCES
	if net.ParseIP(host).To4() != nil {
		barred = syscall.EHOSTUNREACH
	}
	switch {
	case err == nil:
		c.Close()
		return "open"
	case errors.Is(err, barred):
		return "prohibited"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	}
	return err.Error()
}
