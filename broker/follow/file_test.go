// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
)

// FuzzEvents reads any bytes as what inotify(7) tells of: each event ends where it says,
// and of what is cut short nothing is read.
func FuzzEvents(f *testing.F) {
	event := func(mask uint32, name string) []byte {
		b := make([]byte, unix.SizeofInotifyEvent+(len(name)+16)&^15)
		binary.NativeEndian.PutUint32(b[4:], mask)
		binary.NativeEndian.PutUint32(b[12:], uint32(len(b)-unix.SizeofInotifyEvent))
		copy(b[unix.SizeofInotifyEvent:], name)
		return b
	}
	fuzz.Add(f, event(unix.IN_CREATE, "resolv.conf"))
	fuzz.Add(f, event(unix.IN_CREATE, "else"))
	fuzz.Add(f, event(unix.IN_Q_OVERFLOW, ""))
	names := map[string]bool{"resolv.conf": true}
	other := event(unix.IN_CREATE, "else")
	f.Fuzz(func(t *testing.T, b []byte) {
		got := named(b, names)
		if len(b) < unix.SizeofInotifyEvent && got {
			t.Fatal("an event that is not whole")
		}
		if named(append(bytes.Clone(other), b...), names) != got {
			t.Fatal("another behind an event of no interest")
		}
	})
}
