// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// answer is what is kept of a resolver's message: what was asked for, and no more.
type answer struct {
	rcode   dnsmessage.RCode
	aliases []domain.Name // the chain of CNAME records, then targets of services
	chain   int           // how many of aliases are the chain
	records []record      // of the type asked for, at the end of the chain
	addrs   []netip.Addr  // all that records hold, each once
	soa     *authority    // of a negative answer
	expires int64
}

// record is the data of one: as it is, or a service's.
type record struct {
	data    []byte
	service *service
}

// authority is the SOA record of a negative answer, RFC 2308 section 3.
type authority struct {
	owner dnsmessage.Name
	data  []byte
}

// left is how long an answer lasts, in seconds; one that is told lasts one at least.
func (a *answer) left(now int64) uint32 {
	return uint32(max(a.expires-now+second-1, second) / second)
}

// size is about what an answer takes up, in bytes.
func (a *answer) size() int {
	n := 160 + 24*len(a.addrs)
	for _, name := range a.aliases {
		n += 16 + len(name)
	}
	for i := range a.records {
		n += 32 + len(a.records[i].data)
		if s := a.records[i].service; s != nil {
			n += s.size()
		}
	}
	if a.soa != nil {
		n += 288 + len(a.soa.data)
	}
	return n
}

var (
	errAliases = errors.New("dns: a chain of names that is too long, or leads nowhere")
	errData    = errors.New("dns: data of a record that is malformed")
)

// readAnswer takes out of a message what was asked for. The parser stands before the
// answers. What is there besides, and belongs to other names, counts for nothing.
func (e *Engine) readAnswer(q *question, p dnsmessage.Parser, rcode dnsmessage.RCode, now int64) (*answer, error) {
	a := &answer{rcode: rcode}
	end, ttl, err := a.follow(q, p)
	if err != nil {
		return nil, err
	}
	r := reading{answer: a, typ: q.typ, plain: e.cfg.PlainHellos, ttl: ttl}
	if err := r.readRecords(&p, &end); err != nil {
		return nil, err
	}
	if len(a.records) > 0 {
		a.rcode = noError
		a.expires = now + int64(min(max(r.ttl, minTTL), maxTTL))*second
		return a, nil
	}
	ttl, err = a.negative(&p, &end)
	if err != nil {
		return nil, err
	}
	if a.soa != nil {
		a.expires = now + int64(max(min(ttl, r.ttl, maxNegative), minTTL))*second
	}
	return a, nil
}

// seconds is a TTL, of which the highest bit counts as none at all: RFC 2181 section 8.
func seconds(ttl uint32) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return ttl
}

// link is a CNAME record.
type link struct {
	owner, target dnsmessage.Name
	ttl           uint32
}

// follow finds what the name asked for is another name for, and the shortest life on
// the way. DNAME records come with CNAME records that say the same (RFC 6672 section
// 3.1), and are left out.
func (a *answer) follow(q *question, p dnsmessage.Parser) (end dnsmessage.Name, ttl uint32, err error) {
	end, ttl = wireName(q.name), maxTTL
	if q.typ == dnsmessage.TypeCNAME {
		return end, ttl, nil
	}
	links, err := readLinks(&p)
	if err != nil {
		return end, ttl, err
	}
	for {
		i := slices.IndexFunc(links, func(l link) bool { return sameName(&l.owner, &end) })
		if i < 0 {
			a.chain = len(a.aliases)
			return end, ttl, nil
		}
		name, err := domain.Parse(links[i].target.String())
		if err != nil || name == q.name || slices.Contains(a.aliases, name) || len(a.aliases) == MaxAliases {
			return end, ttl, errAliases
		}
		a.aliases = append(a.aliases, name)
		end, ttl = links[i].target, min(ttl, seconds(links[i].ttl))
	}
}

// readLinks reads the CNAME records of a message.
func readLinks(p *dnsmessage.Parser) (links []link, err error) {
	for {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return links, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Type != dnsmessage.TypeCNAME || h.Class != dnsmessage.ClassINET {
			if err := p.SkipAnswer(); err != nil {
				return nil, err
			}
			continue
		}
		c, err := p.CNAMEResource()
		if err != nil {
			return nil, err
		}
		if len(links) == maxCNAMEs {
			return nil, errAliases
		}
		links = append(links, link{h.Name, c.CNAME, h.TTL})
	}
}

// reading is a pass over the answers of a message.
type reading struct {
	*answer
	typ   dnsmessage.Type
	plain bool // Config.PlainHellos
	ttl   uint32
}

// readRecords reads those of the type asked for that belong to a name.
func (r *reading) readRecords(p *dnsmessage.Parser, owner *dnsmessage.Name) error {
	for {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Type != r.typ || h.Class != dnsmessage.ClassINET || !sameName(&h.Name, owner) || len(r.records) == maxRecords {
			err = p.SkipAnswer()
		} else {
			err = r.record(p, &h)
		}
		if err != nil {
			return err
		}
	}
}

// record reads one, of whatever type.
func (r *reading) record(p *dnsmessage.Parser, h *dnsmessage.ResourceHeader) error {
	var rec record
	switch h.Type {
	case dnsmessage.TypeA, dnsmessage.TypeAAAA:
		return r.address(p, h)
	case dnsmessage.TypeHTTPS, dnsmessage.TypeSVCB:
		s, err := readService(p, h, r.plain)
		if err != nil || s == nil || !r.mayKeep(s) {
			return err
		}
		rec.service = s
	default:
		data, err := readData(p, h)
		if err != nil {
			return err
		}
		rec.data = data
	}
	r.records = append(r.records, rec)
	r.ttl = min(r.ttl, seconds(h.TTL))
	return nil
}

// address reads an A or AAAA record. Those beyond MaxAddresses are left out.
func (r *reading) address(p *dnsmessage.Parser, h *dnsmessage.ResourceHeader) error {
	u, err := p.UnknownResource()
	if err != nil {
		return err
	}
	addr, ok := netip.AddrFromSlice(u.Data)
	if !ok || addr.Is4() != (h.Type == dnsmessage.TypeA) {
		return errData
	}
	if r.keep(addr) {
		r.records = append(r.records, record{data: u.Data})
		r.ttl = min(r.ttl, seconds(h.TTL))
	}
	return nil
}

// keep notes an address, if it is new and there is room.
func (a *answer) keep(addr netip.Addr) bool {
	if len(a.addrs) == MaxAddresses || slices.Contains(a.addrs, addr) {
		return false
	}
	a.addrs = append(a.addrs, addr)
	return true
}

// readData reads data of a type that has no addresses. Names in it are written out.
func readData(p *dnsmessage.Parser, h *dnsmessage.ResourceHeader) ([]byte, error) {
	switch h.Type {
	case dnsmessage.TypeNS:
		r, err := p.NSResource()
		return appendName(nil, &r.NS), err
	case dnsmessage.TypePTR:
		r, err := p.PTRResource()
		return appendName(nil, &r.PTR), err
	case dnsmessage.TypeCNAME:
		r, err := p.CNAMEResource()
		return appendName(nil, &r.CNAME), err
	case dnsmessage.TypeMX:
		r, err := p.MXResource()
		return appendName(binary.BigEndian.AppendUint16(nil, r.Pref), &r.MX), err
	case dnsmessage.TypeSRV:
		r, err := p.SRVResource()
		b := binary.BigEndian.AppendUint16(nil, r.Priority)
		b = binary.BigEndian.AppendUint16(b, r.Weight)
		return appendName(binary.BigEndian.AppendUint16(b, r.Port), &r.Target), err
	case dnsmessage.TypeSOA:
		r, err := p.SOAResource()
		return appendSOA(&r), err
	}
	u, err := p.UnknownResource()
	shape, shaped := shapes[h.Type]
	if err == nil && (h.Type == dnsmessage.TypeTXT && !isText(u.Data) || shaped && !isShaped(u.Data, shape)) {
		err = errData
	}
	return u.Data, err
}

// shapes are the data of types that have names and that dnsmessage does not read. A name
// may be compressed in none of them, for who does not know the type could not pass it on
// (RFC 3597 section 4).
var shapes = map[dnsmessage.Type]string{
	typeNAPTR: "....sssn", // RFC 3403 section 4.1
	typeKX:    "..n",      // RFC 2230 section 3
}

// isShaped tells whether data is made of these: "." is an octet, "s" a character string,
// "n" a name that is not compressed.
func isShaped(data []byte, shape string) bool {
	for _, part := range shape {
		n, ok := 1, true
		switch {
		case len(data) == 0:
			return false
		case part == 's':
			n = 1 + int(data[0])
		case part == 'n':
			n, ok = plainName(data)
		}
		if !ok || n > len(data) {
			return false
		}
		data = data[n:]
	}
	return len(data) == 0
}

// plainName returns the length of a name that is not compressed, RFC 1035 section 3.1.
func plainName(data []byte) (n int, ok bool) {
	for n < len(data) && n < maxWire {
		label := int(data[n])
		if n += 1 + label; label == 0 {
			return n, true
		}
		if label > domain.MaxLabel {
			return 0, false // compressed, or of a kind that there is not
		}
	}
	return 0, false
}

// maxWire is the longest that a name may be in a message, RFC 1035 section 2.3.4.
const maxWire = 255

// isText tells whether data is character strings, each behind its length (RFC 1035
// section 3.3.14).
func isText(data []byte) bool {
	for len(data) > 0 && int(data[0]) < len(data) {
		data = data[1+int(data[0]):]
	}
	return len(data) == 0
}

func appendSOA(r *dnsmessage.SOAResource) []byte {
	b := appendName(appendName(nil, &r.NS), &r.MBox)
	for _, v := range [...]uint32{r.Serial, r.Refresh, r.Retry, r.Expire, r.MinTTL} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// negative reads the SOA record of the zone that has no such name, or no such records,
// and how long that lasts (RFC 2308 section 5). Without one the answer is not kept.
func (a *answer) negative(p *dnsmessage.Parser, end *dnsmessage.Name) (ttl uint32, err error) {
	for {
		h, err := p.AuthorityHeader()
		if err == dnsmessage.ErrSectionDone {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		if h.Type != dnsmessage.TypeSOA || h.Class != dnsmessage.ClassINET || !endsIn(end, &h.Name) {
			if err := p.SkipAuthority(); err != nil {
				return 0, err
			}
			continue
		}
		r, err := p.SOAResource()
		if err != nil {
			return 0, err
		}
		a.soa = &authority{lowered(h.Name), appendSOA(&r)}
		return min(seconds(h.TTL), seconds(r.MinTTL)), nil
	}
}
