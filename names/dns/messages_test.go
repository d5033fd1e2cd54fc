// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// question is a client's message.
func message(name string, typ dnsmessage.Type, change ...func(*dnsmessage.Message)) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	for _, f := range change {
		f(&m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// withEDNS adds an OPT record.
func withEDNS(size int, do bool) func(*dnsmessage.Message) {
	return func(m *dnsmessage.Message) {
		var h dnsmessage.ResourceHeader
		_ = h.SetEDNS0(size, 0, do)
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	}
}

func resource(name string, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body,
	}
}

func a4(addr string) *dnsmessage.AResource {
	return &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()}
}

func a6(addr string) *dnsmessage.AAAAResource {
	return &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(addr).As16()}
}

func cname(to string) *dnsmessage.CNAMEResource {
	return &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)}
}

// typeOf is the type of a record that was not unpacked.
func typeOf(r dnsmessage.Resource) dnsmessage.Type {
	m := dnsmessage.Message{Answers: []dnsmessage.Resource{r}}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	var p dnsmessage.Parser
	_, _ = p.Start(b)
	_ = p.SkipAllQuestions()
	h, _ := p.AnswerHeader()
	return h.Type
}

// addrs are the addresses of a message, hints included, wherever they stand.
func addrs(m *dnsmessage.Message) (all []netip.Addr) {
	for _, r := range slices.Concat(m.Answers, m.Authorities, m.Additionals) {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, netip.AddrFrom4(b.A))
		case *dnsmessage.AAAAResource:
			all = append(all, netip.AddrFrom16(b.AAAA))
		case *dnsmessage.HTTPSResource:
			all = append(all, hintsOf(&b.SVCBResource)...)
		case *dnsmessage.SVCBResource:
			all = append(all, hintsOf(b)...)
		}
	}
	return all
}

func hintsOf(r *dnsmessage.SVCBResource) (all []netip.Addr) {
	for _, p := range r.Params {
		size := map[dnsmessage.SVCParamKey]int{dnsmessage.SVCParamIPv4Hint: 4, dnsmessage.SVCParamIPv6Hint: 16}[p.Key]
		for v := p.Value; size > 0 && len(v) >= size; v = v[size:] {
			a, _ := netip.AddrFromSlice(v[:size])
			all = append(all, a)
		}
	}
	return all
}

// texts are addresses as text.
func texts(m *dnsmessage.Message) string {
	var s []string
	for _, a := range addrs(m) {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

// counts puts numbers of records into a header.
func counts(msg []byte, n ...uint16) []byte {
	msg = bytes.Clone(msg)
	for i, v := range n {
		binary.BigEndian.PutUint16(msg[4+2*i:], v)
	}
	return msg
}
