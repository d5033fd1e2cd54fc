// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/fuzz"
)

// message is a route of a type by an interface.
func message(typ uint16, route byte, oif uint32) []byte {
	body := (&rtnl.RouteHeader{Family: unix.AF_INET, Type: route}).Body()
	if oif != 0 {
		body = rtnl.AppendAttrUint32(body, unix.RTA_OIF, oif)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return append(append(b, make([]byte, 10)...), body...)
}

func TestMatters(t *testing.T) {
	away := message(unix.RTM_NEWROUTE, unix.RTN_UNICAST, 2)
	for _, tt := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"nothing", nil, false},
		{"by somebody else", away, false},
		{"by lo", message(unix.RTM_NEWROUTE, unix.RTN_UNICAST, 1), true},
		{"by nothing", message(unix.RTM_NEWROUTE, unix.RTN_UNICAST, 0), true},
		{"local", message(unix.RTM_NEWROUTE, unix.RTN_LOCAL, 2), true},
		{"anycast", message(unix.RTM_NEWROUTE, unix.RTN_ANYCAST, 2), true},
		{"broadcast", message(unix.RTM_NEWROUTE, unix.RTN_BROADCAST, 2), true},
		{"deleted", message(unix.RTM_DELROUTE, unix.RTN_UNICAST, 2), true},
		{"a rule", message(unix.RTM_NEWRULE, 1, 0), true},
		{"the second", append(append([]byte{}, away...), message(unix.RTM_NEWROUTE, unix.RTN_LOCAL, 1)...), true},
		{"cut", away[:len(away)-1], true},
	} {
		if got := matters(tt.b); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

// FuzzRoutes reads any bytes as what the kernel tells. What is not a whole message
// is one that matters; behind others, it matters as much.
func FuzzRoutes(f *testing.F) {
	away := message(unix.RTM_NEWROUTE, unix.RTN_UNICAST, 2)
	for _, b := range [][]byte{away, message(unix.RTM_NEWROUTE, unix.RTN_LOCAL, 1), message(unix.RTM_DELROUTE, unix.RTN_UNICAST, 2),
		message(unix.RTM_NEWLINK, 0, 0), away[:20], {16, 0, 0, 0}, {}} {
		fuzz.Add(f, b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := matters(b)
		if len(b) > 0 && len(b) < unix.SizeofNlMsghdr && !got {
			t.Fatal("a piece of a message is passed over")
		}
		if again := matters(append(append([]byte{}, away...), b...)); again != got {
			t.Fatalf("%t behind another message, else %t", again, got)
		}
	})
}
