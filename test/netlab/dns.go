// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ServeDNS has a resolver on an address and port of the namespace. It answers A
// and AAAA queries for any name with the addresses given, and TXT queries with
// two kilobytes, which by UDP are truncated to nothing.
func ServeDNS(n *NS, addr string, v4, v6 netip.Addr) {
	n.tb.Helper()
	z := same{v4.As4(), v6.As16()}
	serveDNS(n, addr, z.answer)
}

// serveDNS has what answers queries do so on an address and port of the namespace, by UDP
// and TCP, until the test ends.
func serveDNS(n *NS, addr string, answer func(query []byte, udp bool) []byte) {
	n.tb.Helper()
	udp, tcp := n.ListenUDP("udp", addr), n.Listen("tcp", addr)
	go func() {
		buf := make([]byte, 4096)
		for {
			k, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteToUDPAddrPort(answer(buf[:k], true), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go answerStream(c, answer)
		}
	}()
}

// answerStream answers the queries of a connection, RFC 1035 section 4.2.2.
func answerStream(c net.Conn, answer func(query []byte, udp bool) []byte) {
	defer c.Close()
	var size [2]byte
	for {
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		q := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, q); err != nil {
			return
		}
		a := answer(q, false)
		_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
	}
}

// same is what all names have.
type same struct {
	v4 [4]byte
	v6 [16]byte
}

func (z *same) answer(query []byte, udp bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.Additionals = true, nil
	h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}
	switch q.Type {
	case dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: z.v4}}}
	case dnsmessage.TypeAAAA:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: z.v6}}}
	case dnsmessage.TypeTXT:
		if m.Truncated = udp; !udp {
			long := strings.Repeat("x", 250)
			m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.TXTResource{TXT: []string{long, long, long, long, long, long, long, long}}}}
		}
	}
	b, _ := m.Pack()
	return b
}

// Resolvers puts a resolver on each place where a host behind a router may have
// one: the router, the remote, and the host's loopback and own addresses. Each
// gives other answers, named here by the resolver: see ResolverAnswer.
func (l *Lab) Resolvers() {
	l.TB.Helper()
	index := strings.TrimSpace(strings.SplitN(l.Remote.Must("ip", "-o", "link", "show", "r0"), ":", 2)[0])
	for at, id := range resolvers {
		ns, bind := l.Host, at
		switch at {
		case Gateway4, "192.0.2.9":
			ns = l.Remote
		case Gateway6:
			ns, bind = l.Remote, Gateway6+"%"+index // package net takes names of interfaces for the same everywhere
		}
		v4, v6 := resolverAnswer(id)
		ServeDNS(ns, net.JoinHostPort(bind, "53"), v4, v6)
	}
}

var resolvers = map[string]byte{Gateway4: 1, "192.0.2.9": 2, Gateway6: 3, "127.0.0.53": 4, "127.0.0.1": 5, "::1": 6, Host4: 7, Host6: 8}

// ResolverAnswer is what the lab's resolver at an address says of any name.
func ResolverAnswer(at string) (v4, v6 netip.Addr) { return resolverAnswer(resolvers[at]) }

func resolverAnswer(id byte) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{198, 51, 100, 100 + id}), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: id})
}
