// SPDX-License-Identifier: Apache-2.0

package ipc_test

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	. "aldente/ipc"
	"aldente/ipc/ipctest"
)

func init() {
	for k, d := range map[Kind]func(b []byte) ([]byte, error){
		NamesKindConfig:   func(b []byte) ([]byte, error) { var r NamesConfig; err := r.Decode(b); return r.Encode(), err },
		NamesKindRule:     func(b []byte) ([]byte, error) { var r NamesRule; err := r.Decode(b); return r.Encode(), err },
		NamesKindRules:    func(b []byte) ([]byte, error) { var r NamesRules; err := r.Decode(b); return r.Encode(), err },
		NamesKindClient:   func(b []byte) ([]byte, error) { var r Client; err := r.Decode(b); return r.Encode(), err },
		NamesKindUpstream: func(b []byte) ([]byte, error) { var r Upstream; err := r.Decode(b); return r.Encode(), err },
		NamesKindGranted:  func(b []byte) ([]byte, error) { var r Granted; err := r.Decode(b); return r.Encode(), err },
		NamesKindClosed:   func(b []byte) ([]byte, error) { var r Closed; err := r.Decode(b); return r.Encode(), err },
		NamesKindDial:     func(b []byte) ([]byte, error) { var r Dial; err := r.Decode(b); return r.Encode(), err },
		NamesKindRefused:  func(b []byte) ([]byte, error) { var r Refused; err := r.Decode(b); return r.Encode(), err },
		NamesKindCounted:  func(b []byte) ([]byte, error) { var r Counted; err := r.Decode(b); return r.Encode(), err },
		NamesKindNamed: func(b []byte) ([]byte, error) {
			var r Named
			err := r.Decode(b)
			out := make([]byte, NamedSize)
			r.Encode(out)
			return out, err
		},
	} {
		decoders[k] = d
	}
}

// TestEveryKindIsDecoded: whatever the table has, save what has no more than a header,
// some decoder takes and encodes as it was. The fuzz target goes through the same.
func TestEveryKindIsDecoded(t *testing.T) {
	records := ipctest.Records()
	for _, r := range Rows() {
		b := records[r.Kind]
		if r.Size == HeaderSize {
			continue
		}
		decode := decoders[r.Kind]
		if decode == nil {
			decode = redecode
		}
		if again, err := decode(b); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: %v, %x becomes %x", r.Name, err, b, again)
		}
	}
}

// hostileNames are records, each of which breaks one of the rules of its kind.
func hostileNames() map[string][]byte {
	text := func(s string) Name { n, _ := MakeName(s); return n }
	behind := text("a.example")
	behind.Bytes[200] = 'x'
	named := func(change func(*Named)) []byte {
		n := Named{Seq: 1, TTL: 5, Type: 1, Name: text("a.example"), Aliases: 1, Count: 1,
			Alias: [MaxAliases]Name{text("b.example")}, Addr: [MaxNamed][16]byte{{15: 1}}}
		change(&n)
		b := make([]byte, NamedSize)
		n.Encode(b)
		return b
	}
	with := func(b []byte, at int, v byte) []byte {
		b[HeaderSize+at] = v
		return b
	}
	return map[string][]byte{
		"too many resolvers":       (&NamesConfig{Resolvers: MaxResolvers + 1}).Encode(),
		"config, unknown flag":     (&NamesConfig{Flags: 1 << 31}).Encode(),
		"config, reserved":         (&NamesConfig{Reserved: [2]uint8{1: 1}}).Encode(),
		"config, search domains":   (&NamesConfig{NSearch: MaxSearch + 1}).Encode(),
		"config, no such domain":   (&NamesConfig{NSearch: 1}).Encode(),
		"config, more domains":     (&NamesConfig{Search: [MaxSearch]Name{text("a")}}).Encode(),
		"rule of no name":          (&NamesRule{}).Encode(),
		"rule beyond the last":     (&NamesRule{Index: MaxNameRules, Pattern: text("a")}).Encode(),
		"rule, unknown flag":       (&NamesRule{Flags: 4, Pattern: text("a")}).Encode(),
		"rule, reserved":           (&NamesRule{Zero: 1, Pattern: text("a")}).Encode(),
		"rule of a space":          (&NamesRule{Pattern: text("a b")}).Encode(),
		"rule, more behind it":     (&NamesRule{Pattern: behind}).Encode(),
		"too many rules":           (&NamesRules{Count: MaxNameRules + 1}).Encode(),
		"rules, third default":     (&NamesRules{Default: 2}).Encode(),
		"rules, reserved":          (&NamesRules{Zero: 1}).Encode(),
		"client without number":    (&Client{Proto: ProtoUDP, Port: 1}).Encode(),
		"client of echo":           (&Client{ID: 1, Proto: ProtoICMP, Port: 1}).Encode(),
		"client without port":      (&Client{ID: 1, Proto: ProtoUDP}).Encode(),
		"client, reserved":         (&Client{ID: 1, Proto: ProtoUDP, Port: 1, Zero: 1}).Encode(),
		"closed, all of them":      (&Closed{}).Encode(),
		"closed, reserved":         (&Closed{Port: 1, Zero: 1}).Encode(),
		"dial of no resolver":      (&Dial{Resolver: MaxResolvers, Proto: ProtoUDP}).Encode(),
		"dial of no protocol":      (&Dial{}).Encode(),
		"dial, reserved":           (&Dial{Proto: ProtoTCP, Zero: 1}).Encode(),
		"upstream of no resolver":  (&Upstream{Resolver: MaxResolvers, Proto: ProtoUDP}).Encode(),
		"upstream of no protocol":  (&Upstream{}).Encode(),
		"no proxy":                 (&Proxy{}).Encode(),
		"proxy of another kind":    (&Proxy{What: ProxyHTTP + 1}).Encode(),
		"proxy, reserved":          (&Proxy{What: ProxyHTTP, Reserved: 1}).Encode(),
		"proxy, user alone":        (&Proxy{What: ProxyHTTP, UserLen: 1, User: [MaxProxySecret]byte{'u'}}).Encode(),
		"proxy, secret alone":      (&Proxy{What: ProxyHTTP, SecretLen: 1, Secret: [MaxProxySecret]byte{'u'}}).Encode(),
		"proxy, behind the user":   (&Proxy{What: ProxyHTTP, User: [MaxProxySecret]byte{'u'}}).Encode(),
		"proxy, behind the secret": (&Proxy{What: ProxyHTTP, Secret: [MaxProxySecret]byte{254: 'u'}}).Encode(),
		"relay without number":     (&Relay{Port: 1}).Encode(),
		"relay without port":       (&Relay{ID: 1}).Encode(),
		"relay, reserved":          (&Relay{ID: 1, Port: 1, Reserved: [2]byte{1: 1}}).Encode(),
		"relay to a space":         (&Relay{ID: 1, Port: 1, Name: text("a b")}).Encode(),
		"relayed to nothing":       (&Relayed{ID: 1}).Encode(),
		"relayed to unknown":       (&Relayed{ID: 1, Result: RelayNoRoom + 1}).Encode(),
		"relayed, reserved":        (&Relayed{ID: 1, Result: RelayDone, Zero: 1}).Encode(),
		"granted, reserved":        (&Granted{Zero: 1}).Encode(),
		"granted, around none":     (&Granted{Mask: 2, Around: [MaxNamed]uint8{8}}).Encode(),
		"granted, around all":      (&Granted{Mask: 1, Around: [MaxNamed]uint8{129}}).Encode(),
		"refused for nothing":      (&Refused{Name: text("a")}).Encode(),
		"refused for unknown":      (&Refused{Why: NotRefused + 1, Name: text("a")}).Encode(),
		"refused, reserved":        (&Refused{Why: RefusedByRule, Zero: 1, Name: text("a")}).Encode(),
		"refused, escape":          (&Refused{Why: RefusedByRule, Name: text("a\x1b")}).Encode(),
		"refused, line":            (&Refused{Why: RefusedByRule, Name: text("a\nb")}).Encode(),
		"refused, quote":           (&Refused{Why: RefusedByRule, Name: text(`a"`)}).Encode(),
		"refused, eight bits":      (&Refused{Why: RefusedByRule, Name: text("\x80")}).Encode(),
		"refused, more behind it":  (&Refused{Why: RefusedByRule, Name: behind}).Encode(),
		"named for too long":       named(func(n *Named) { n.TTL = 1 << 31 }),
		"named nothing":            named(func(n *Named) { n.Name = Name{} }),
		"named a space":            named(func(n *Named) { n.Name = text("a b") }),
		"named, more behind it":    named(func(n *Named) { n.Name = behind }),
		"named, too many aliases":  named(func(n *Named) { n.Aliases = MaxAliases + 1 }),
		"named, empty alias":       named(func(n *Named) { n.Aliases = 2 }),
		"named, alias that is not": named(func(n *Named) { n.Aliases = 0 }),
		"named, too many":          named(func(n *Named) { n.Count = MaxNamed + 1 }),
		"named, no address":        named(func(n *Named) { n.Count = 2 }),
		"named, address behind":    named(func(n *Named) { n.Addr[MaxNamed-1][0] = 1 }),
		"named, length of a name":  with(named(func(*Named) {}), 12, 200),
	}
}

// TestHostileNames: none of them is taken.
func TestHostileNames(t *testing.T) {
	for name, b := range hostileNames() {
		if _, err := decoders[KindOf(b)](b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	longest, _ := MakeName(strings.Repeat("a", MaxDomain))
	var full Named
	full.Name, full.Aliases, full.Count = longest, MaxAliases, MaxNamed
	for i := range full.Alias {
		full.Alias[i] = longest
	}
	for i := range full.Addr {
		full.Addr[i] = [16]byte{byte(i), 15: 1}
	}
	b := make([]byte, NamedSize)
	full.Encode(b)
	var again Named
	if err := again.Decode(b); err != nil || again != full {
		t.Errorf("as much as there may be: %v", err)
	}
}

// TestAroundAddress: as many bits are compared as are said, and an address of ISATAP is like no
// other.
func TestAroundAddress(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		bits uint8
		want bool
	}{
		{"192.0.2.1", "192.0.2.1", 128, true}, {"192.0.2.1", "192.0.2.2", 128, false}, {"192.0.2.1", "192.0.2.1", 0, false},
		{"192.0.2.1", "192.0.2.254", 120, true}, {"192.0.2.1", "192.0.3.1", 120, false}, {"192.0.2.1", "192.0.3.1", 119, true},
		{"192.0.2.1", "192.0.0.1", 119, false}, {"192.0.2.1", "10.0.0.1", 96, true}, {"192.0.2.1", "2001:db8::1", 1, true}, {"192.0.2.1", "8000::1", 1, false},
		{"2001:db8::1", "2001:db8:ffff::1", 32, true}, {"2001:db8::1", "2001:db9::1", 32, false}, {"2001:db8::1", "2001:db9::1", 31, true},
		{"2001:db8::1", "2001:db8::5efe:a00:1", 32, false}, {"2001:db8::1", "2001:db8::200:5efe:a00:1", 32, false}, {"2001:db8::1", "2001:db8::100:5efe:a00:1", 32, true},
		{"2001:db8::5efe:a00:1", "2001:db8::5efe:a00:1", 128, true}, {"2001:db8::5efe:a00:1", "2001:db8::5efe:a00:1", 96, false},
	} {
		a, b := netip.MustParseAddr(tt.a).As16(), netip.MustParseAddr(tt.b).As16()
		if Around(a, tt.bits, b) != tt.want {
			t.Errorf("%s, %d bits, %s: not %v", tt.a, tt.bits, tt.b, tt.want)
		}
	}
}
