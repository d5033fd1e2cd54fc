// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Offsets of classic BPF, Linux's include/uapi/linux/filter.h: from there on, loads
// are relative to the network header, and of what the kernel knows besides.
const (
	netOffset  = uint32(1<<32 - 0x100000)   // SKF_NET_OFF
	interfaces = uint32(1<<32 - 0x1000 + 8) // SKF_AD_OFF + SKF_AD_IFINDEX: by which the packet has come
)

// loopbackIndex is the index of the interface lo in each network namespace. All that
// the host sends to itself comes by it, whatever the addresses are; from elsewhere
// nothing does. So nobody outside can pass for the host by an address.
const loopbackIndex = 1

// Verdicts: how many bytes of the packet are kept.
const (
	drop = 0
	keep = 0xffffffff
)

// Codes of instructions.
const (
	loadWord  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	loadByte  = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	loadSaved = unix.BPF_LD | unix.BPF_MEM
	save      = unix.BPF_ST
	and       = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	shift     = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	jump      = unix.BPF_JMP | unix.BPF_JA
	equal     = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	verdict   = unix.BPF_RET | unix.BPF_K
)

func do(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

// Program is what a listening socket for a port of the guest's is to have, nil: no
// rule says anything of it.
func (s *RuleSet) Program(proto uint8, port uint16) []unix.SockFilter {
	if s == nil {
		return nil
	}
	var about []*rule
	rules := *s.rules.Load()
	for i := range rules {
		if rules[i].about(proto, port) {
			about = append(about, &rules[i])
		}
	}
	if len(about) == 0 {
		return nil
	}
	v4, v6 := section(about, true), section(about, false)
	p := []unix.SockFilter{
		do(loadByte, netOffset), do(shift, 4), // the version
		{Code: equal, Jt: 1, K: 4},
		do(jump, uint32(len(v4))),
	}
	return append(append(p, v4...), v6...)
}

// section is the rules for one family. All of its ways end in a verdict.
func section(rules []*rule, v4 bool) (p []unix.SockFilter) {
	words, at := uint32(4), uint32(8) // where the source is, RFC 8200 section 3, RFC 791 section 3.1
	if v4 {
		words, at = 1, 12
	}
	for w := range words {
		p = append(p, do(loadWord, netOffset+at+4*w), do(save, w))
	}
	for _, r := range rules {
		result := do(verdict, drop)
		if r.Allow {
			result = do(verdict, keep)
		}
		if r.Host {
			p = append(p, do(loadWord, interfaces), unix.SockFilter{Code: equal, Jf: 1, K: loopbackIndex}, result)
		}
		for _, x := range r.Prefixes {
			if x.Addr().Is4() != v4 {
				continue
			}
			p = append(append(p, differs(x)...), result)
			if x.Bits() == 0 {
				return p
			}
		}
	}
	return append(p, do(verdict, keep))
}

// differs jumps over the one instruction behind it unless the source is in a prefix.
func differs(x netip.Prefix) (p []unix.SockFilter) {
	addr := x.Addr().AsSlice()
	for left, w := x.Bits(), 0; left > 0; left, w = left-32, w+1 {
		p = append(p, do(loadSaved, uint32(w)))
		if left < 32 {
			p = append(p, do(and, ^uint32(0)<<(32-left)))
		}
		p = append(p, unix.SockFilter{Code: equal, K: binary.BigEndian.Uint32(addr[4*w:])})
	}
	for i := range p {
		if p[i].Code == equal {
			p[i].Jf = uint8(len(p) - i)
		}
	}
	return p
}
