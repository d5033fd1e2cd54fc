// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// Types that dnsmessage does not name.
const (
	typeWKS     = 11
	typeHINFO   = 13
	typeMD      = 3
	typeMF      = 4
	typeMB      = 7
	typeMG      = 8
	typeMR      = 9
	typeMINFO   = 14
	typeRP      = 17
	typeAFSDB   = 18
	typeRT      = 21
	typeSIG     = 24
	typePX      = 26
	typeNXT     = 30
	typeNAPTR   = 35
	typeKX      = 36
	typeA6      = 38
	typeDNAME   = 39
	typeIXFR    = 251
	firstMeta   = 128 // RFC 6895 section 3.1: to 255, types of questions only
	lastMeta    = 255
	headerSize  = 12
	opQuery     = 0
	optVersion  = 0x00ff0000 // in the TTL of an OPT record, RFC 6891 section 6.1.3
	rcodeBADVER = 16
)

// Further response codes are dnsmessage's.
const (
	noError  = dnsmessage.RCodeSuccess
	formErr  = dnsmessage.RCodeFormatError
	servFail = dnsmessage.RCodeServerFailure
	nxDomain = dnsmessage.RCodeNameError
	notImp   = dnsmessage.RCodeNotImplemented
	refused  = dnsmessage.RCodeRefused
)

// query is a client's question, and what its answer has to repeat.
type query struct {
	header  dnsmessage.Header
	asked   bool // there is a question to repeat
	name    dnsmessage.Name
	class   dnsmessage.Class
	typ     dnsmessage.Type
	edns    bool
	do      bool
	size    int         // how long an answer may be, in bytes
	domain  domain.Name // empty: none that a rule can name
	problem dnsmessage.RCode
}

// readQuery reads a client's message. It is false for what gets no answer at all:
// no header, or an answer, since two servers would answer each other without end.
// problem is the error that the client is told; the name has not been judged.
func readQuery(msg []byte, tcp bool) (query, bool) {
	q := query{size: plainSize}
	if tcp {
		q.size = MaxMessage
	}
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(msg); err != nil || q.header.Response {
		return q, false
	}
	count := func(i int) uint16 { return binary.BigEndian.Uint16(msg[4+2*i:]) }
	switch {
	case q.header.OpCode != opQuery:
		q.problem = notImp
		return q, true
	case count(0) != 1 || count(1) != 0 || count(2) != 0 || count(3) > 1 || q.header.Truncated:
		q.problem = formErr // RFC 9619 section 4
		return q, true
	}
	question, err := p.Question()
	if err != nil {
		q.problem = formErr
		return q, true
	}
	q.asked, q.name, q.class, q.typ = true, question.Name, question.Class, question.Type
	if q.problem = q.readEDNS(&p, tcp); q.problem == noError {
		q.problem = q.unanswerable()
	}
	q.domain, _ = domain.Parse(q.name.String())
	return q, true
}

// readEDNS reads the additional section: an OPT record, or nothing.
func (q *query) readEDNS(p *dnsmessage.Parser, tcp bool) dnsmessage.RCode {
	// There is nothing before it any more: counted.
	_, _, _ = p.SkipAllQuestions(), p.SkipAllAnswers(), p.SkipAllAuthorities()
	h, err := p.AdditionalHeader()
	if err == dnsmessage.ErrSectionDone {
		return noError
	}
	// Whoever signs its question (TSIG) has a key of somebody else's.
	if err != nil || h.Type != dnsmessage.TypeOPT || h.Name.Length != 1 || p.SkipAdditional() != nil {
		return formErr
	}
	q.edns, q.do = true, h.TTL&0x8000 != 0
	if !tcp {
		q.size = min(max(int(h.Class), plainSize), ednsSize)
	}
	if h.TTL&optVersion != 0 {
		return rcodeBADVER
	}
	return noError
}

// unanswerable is the error for questions that are not about a name's records, or
// whose records cannot be passed on.
func (q *query) unanswerable() dnsmessage.RCode {
	switch {
	case q.class != dnsmessage.ClassINET:
		return refused
	case q.typ == dnsmessage.TypeAXFR || q.typ == typeIXFR:
		return refused
	case q.typ == dnsmessage.TypeALL:
		return noError
	case q.typ >= firstMeta && q.typ <= lastMeta || q.typ == 0 || q.typ == dnsmessage.TypeOPT:
		return notImp
	}
	switch q.typ {
	case typeMD, typeMF, typeMB, typeMG, typeMR, typeMINFO, typeRP, typeAFSDB, typeRT, typeSIG, typePX,
		typeNXT, typeA6, typeDNAME, typeWKS:
		return notImp
	}
	return noError
}
