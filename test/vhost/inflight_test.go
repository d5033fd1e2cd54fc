// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	"aldente/test/netlab"
	fe "aldente/test/vhost/frontend"
)

// TestInflight kills the worker and connects again with the in-flight region of
// before: what it had in hand is given back once.
func TestInflight(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	c := everything
	f := p.connect(t, c)
	g, err := fe.NewGuest(f, 4096)
	if err != nil {
		t.Fatal(err)
	}
	file, size, err := f.Inflight(-1, 0)
	if err == nil {
		err = f.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	for range 3 {
		works(t, g)
		if err := syscall.Kill(p.Worker(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !f.Ended(10 * time.Second) {
			t.Fatal("the front-end is not told")
		}
		conn, err := fe.Dial(p.Path)
		if err != nil {
			t.Fatal(err)
		}
		f.Before = func() error { _, _, err := f.Inflight(file, size); return err }
		if err := g.Reconnect(conn); err != nil {
			t.Fatal(err)
		}
	}
	works(t, g)
}
