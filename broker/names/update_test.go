// SPDX-License-Identifier: Apache-2.0

package names

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestUpdateBeforeReady: rules that change while a process starts reach it when it is up.
func TestUpdateBeforeReady(t *testing.T) {
	e := rules(t, "allow a.test", "deny any")
	r := newRig(t, e)
	if err := r.Setup(r.broker); err != nil {
		t.Fatal(err)
	}
	for _, k := range []ipc.Kind{ipc.NamesKindConfig, ipc.NamesKindRule, ipc.NamesKindRules, ipc.NamesKindStart} {
		if _, fd := r.hear(k); fd >= 0 {
			unix.Close(fd)
		}
	}
	r.SetProcess(away{})
	r.Update()
	r.SetProcess(r)
	r.Ready()
	r.hear(ipc.NamesKindRule)
	r.hear(ipc.NamesKindRules)
}

// deaf is a process that takes nothing.
type deaf struct{ *rig }

// Send implements Process.
func (deaf) Send([]byte, int) error { return unix.EAGAIN }

// TestUpdateNotTaken: a process that does not take other rules is replaced; between two of
// them there is none to be.
func TestUpdateNotTaken(t *testing.T) {
	r := newRig(t, rules(t, "allow a.test", "deny any"))
	r.SetProcess(away{})
	r.Update()
	r.SetProcess(deaf{r})
	r.Update()
	if r.killed != 1 {
		t.Errorf("killed %d times", r.killed)
	}
}

// away is a supervisor between processes.
type away struct{}

func (away) Send([]byte, int) error { return unix.EPIPE }

func (away) PassNow([]byte, int) error { return unix.EPIPE }

func (away) Kill() {}

func (away) Renew() {}

// TestSetResolvers: others are asked from then on, by a process that knows how many there
// are; one that was being made meanwhile is replaced once more.
func TestSetResolvers(t *testing.T) {
	r := newRig(t, rules(t, "allow a.test"), "192.0.2.1")
	r.SetResolvers(ipc.NamesConfig{}, []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")})
	if r.renewed != 1 || r.Config.Resolvers != 2 {
		t.Errorf("renewed %d times, %d resolvers", r.renewed, r.Config.Resolvers)
	}
	if r.Ready(); r.renewed != 2 {
		t.Errorf("a process that was told of others goes on")
	}
}
