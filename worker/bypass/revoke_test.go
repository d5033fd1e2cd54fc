// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRevokeFlow: a connection past the link that is not allowed any more is reset for
// both sides.
func TestRevokeFlow(t *testing.T) {
	l := newLane(t)
	c := l.connect("127.0.0.1")
	defer c.close()
	s := &l.t.streams.all[0]
	l.t.RevokeFlow(token(s.gen+1, 0, far, 0))
	l.t.RevokeFlow(token(s.gen, 1, far, 0))
	l.t.RevokeFlow(token(s.gen, 7, far, indexUDP))
	if l.t.Stats.Revoked != 0 {
		t.Fatal("another's end is taken for its own")
	}
	l.t.RevokeFlow(token(s.gen, 0, far, 0))
	l.t.Sweep()
	for name, peer := range map[string]int{"client": c.client, "server": c.server} {
		if _, err := fd(peer).Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: read: %v", name, err)
		}
	}
	if l.t.Stats.Revoked != 1 || l.t.Len() != 0 {
		t.Errorf("%d revoked, %d left", l.t.Stats.Revoked, l.t.Len())
	}
}
