// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"slices"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// Sizes of an OPT record without options, and of one with an extended error.
const (
	optSize      = 11
	extendedSize = 6
	codeExtended = 15 // of the option: RFC 8914 section 2
	blocked      = 15 // section 4.16: by whoever runs this
)

// writer writes a message within a limit.
type writer struct {
	q         *query
	rcode     dnsmessage.RCode
	b         dnsmessage.Builder
	limit     int // for what stands before the OPT record
	blocked   bool
	truncated bool
}

// write begins the answer to a question, which it repeats.
func (q *query) write(rcode dnsmessage.RCode) *writer {
	w := &writer{q: q, rcode: rcode, limit: q.size}
	if q.edns {
		w.limit -= optSize + extendedSize
	}
	w.b = dnsmessage.NewBuilder(make([]byte, 0, plainSize), dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RCode: rcode & 0xf,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
		CheckingDisabled: q.header.CheckingDisabled, // RFC 4035 section 3.2.2
	})
	w.b.EnableCompression()
	if q.asked {
		w.must(w.b.StartQuestions())
		w.must(w.b.Question(dnsmessage.Question{Name: q.name, Type: q.typ, Class: q.class}))
	}
	return w
}

// must is for what cannot fail: sections in their order, names that were read.
func (w *writer) must(err error) {
	if err != nil {
		panic(err)
	}
}

// add writes a record. One that does not fit is left out, and those behind it: what is
// there says so, and the client asks by TCP.
func (w *writer) add(h dnsmessage.ResourceHeader, r record) {
	if w.truncated {
		return
	}
	before := w.b
	h.Class = dnsmessage.ClassINET
	var err error
	switch {
	case r.service == nil:
		err = w.b.UnknownResource(h, dnsmessage.UnknownResource{Type: h.Type, Data: r.data})
	case h.Type == dnsmessage.TypeHTTPS:
		err = w.b.HTTPSResource(h, dnsmessage.HTTPSResource{SVCBResource: r.service.SVCBResource})
	default:
		err = w.b.SVCBResource(h, r.service.SVCBResource)
	}
	if err != nil || w.len() > w.limit {
		w.b, w.truncated = before, true
	}
}

func (w *writer) len() int {
	b := w.b
	msg, _ := b.Finish()
	return len(msg)
}

// end returns the message.
func (w *writer) end() []byte {
	if w.q.edns {
		w.must(w.b.StartAdditionals())
		var options []dnsmessage.Option
		if w.blocked {
			options = []dnsmessage.Option{{Code: codeExtended, Data: []byte{0, blocked}}}
		}
		w.must(option(&w.b, ednsSize, w.rcode, w.q.do, options)) // DO: RFC 3225 section 3
	}
	msg, err := w.b.Finish()
	w.must(err)
	if w.truncated {
		msg[2] |= 2
	}
	return msg
}

// option writes an OPT record.
func option(b *dnsmessage.Builder, size int, rcode dnsmessage.RCode, do bool, options []dnsmessage.Option) error {
	if err := b.StartAdditionals(); err != nil {
		return err
	}
	var h dnsmessage.ResourceHeader
	_ = h.SetEDNS0(size, rcode, do) // never fails
	return b.OPTResource(h, dnsmessage.OPTResource{Options: options})
}

// failure is an answer that says why there is none.
func (q *query) failure(rcode dnsmessage.RCode) []byte { return q.write(rcode).end() }

// refusal is the answer for what the rules refuse.
func (q *query) refusal(rcode dnsmessage.RCode) []byte {
	w := q.write(rcode)
	w.blocked = true
	return w.end()
}

// minimal is the answer to ANY: RFC 8482 section 4.2.
func (q *query) minimal() []byte {
	w := q.write(noError)
	w.must(w.b.StartAnswers())
	w.add(dnsmessage.ResourceHeader{Name: q.name, Type: typeHINFO, TTL: anyTTL}, record{data: []byte("\x07RFC8482\x00")})
	return w.end()
}

// pointer is the answer that an address belongs to a name.
func (q *query) pointer(name domain.Name, ttl uint32) []byte {
	n := wireName(name)
	w := q.write(noError)
	w.must(w.b.StartAnswers())
	w.add(dnsmessage.ResourceHeader{Name: q.name, Type: dnsmessage.TypePTR, TTL: ttl}, record{data: appendName(nil, &n)})
	return w.end()
}

// answer is what a resolver has said, with the addresses that are granted.
func (q *query) answer(a *answer, granted []netip.Addr, ttl uint32) []byte {
	records := a.told(granted)
	w := q.write(a.rcode)
	w.must(w.b.StartAnswers())
	if w.blocked = len(granted) < len(a.addrs); len(records) == 0 && len(a.records) > 0 {
		return w.end() // nothing is granted: no such records
	}
	h := dnsmessage.ResourceHeader{Name: q.name, TTL: ttl}
	for _, alias := range a.aliases[:a.chain] {
		target := wireName(alias)
		h.Type = dnsmessage.TypeCNAME
		w.add(h, record{data: appendName(nil, &target)})
		h.Name = target
	}
	h.Type = q.typ
	for _, r := range records {
		w.add(h, r)
	}
	if a.soa != nil && !w.truncated {
		w.must(w.b.StartAuthorities())
		w.add(dnsmessage.ResourceHeader{Name: a.soa.owner, Type: dnsmessage.TypeSOA, TTL: ttl}, record{data: a.soa.data})
		w.truncated = false // it may be missing
	}
	return w.end()
}

// told is what a client may see of the records.
func (a *answer) told(granted []netip.Addr) []record {
	if len(a.addrs) == 0 {
		return a.records
	}
	var told []record
	for _, r := range a.records {
		if r.service != nil {
			if s, ok := r.service.granted(granted); ok {
				told = append(told, record{service: &s})
			}
		} else if addr, _ := netip.AddrFromSlice(r.data); slices.Contains(granted, addr) {
			told = append(told, r)
		}
	}
	return told
}
