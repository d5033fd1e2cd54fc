// SPDX-License-Identifier: Apache-2.0

package names

import (
	"math/bits"
	"strconv"
	"sync"
	"time"

	"aldente/ipc"
	"aldente/ipc/domain"
)

// maxNamed bounds the names of which the log says once each that they are refused. A guest
// can ask for any number.
const maxNamed = 256

// reasons are those of ipc.Refused in words.
var reasons = map[uint8]string{
	ipc.RefusedByRule:  "egress rules",
	ipc.RefusedDefault: "egress rules",
	ipc.RefusedAlias:   "leads to a name that is refused",
	ipc.RefusedAddress: "all its addresses are refused",
	ipc.RefusedType:    "type of question",
}

// refused tells of a name that is not looked up: each once, and with debugging all, as far
// as the log can stand it.
func (s *Server) refused(rec []byte) error {
	var r ipc.Refused
	if err := r.Decode(rec); err != nil {
		return err
	}
	reason, ok := reasons[r.Why]
	if !ok { // it was looked up
		if name, err := domain.Parse(r.Name.String()); err == nil && s.Audit != nil {
			s.Audit.Asked(string(name), s.learns(name), "")
		}
		return nil
	}
	name, typ := r.Name.String(), typeName(r.Type)
	if s.FlowLog != nil {
		s.FlowLog.NameRefused(name, typ, reason)
	}
	if _, known := s.named[name]; !known && len(s.named) < maxNamed {
		if !s.lines.Take(time.Now()) {
			return nil
		}
		s.named[name] = struct{}{}
		s.Logger.Warn("name refused", "name", name, "type", typ, "reason", reason)
		if len(s.named) == maxNamed {
			s.Logger.Warn("further names that are refused are not told of any more")
		}
		return nil
	}
	if s.lines.Take(time.Now()) {
		s.Logger.Debug("name refused", "name", name, "type", typ, "reason", reason)
	}
	return nil
}

// types are those of questions that have a name of their own here, RFC 1035 and later.
var types = map[uint16]string{1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV",
	64: "SVCB", 65: "HTTPS", 255: "ANY"}

// typeName is what a type of question is called, RFC 3597 section 5 for others.
func typeName(t uint16) string {
	if name, ok := types[t]; ok {
		return name
	}
	return "TYPE" + strconv.Itoa(int(t))
}

func ones(mask uint64) int { return bits.OnesCount64(mask) }

// counted adds up what processes have counted.
type counted struct {
	mu  sync.Mutex
	all ipc.Counted
}

func (c *counted) add(n *ipc.Counted) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range [...]struct {
		sum *uint64
		n   uint64
	}{{&c.all.Questions, n.Questions}, {&c.all.Refused, n.Refused}, {&c.all.Cached, n.Cached}, {&c.all.Asked, n.Asked},
		{&c.all.Failed, n.Failed}, {&c.all.Forged, n.Forged}} {
		if *p.sum += p.n; *p.sum < p.n { // it may say that it has counted that far
			*p.sum = 1<<64 - 1
		}
	}
}

// Counted is what all processes have counted, which is their word.
func (s *Server) Counted() ipc.Counted {
	s.counted.mu.Lock()
	defer s.counted.mu.Unlock()
	return s.counted.all
}
