// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// judge reports whether a name may be asked for. What is refused is counted and told.
// The reverse name of an address that the guest has been given is allowed, since
// nobody else is asked for it.
func (e *Engine) judge(q *query, now int64) bool {
	allowed, why := e.allows(q.domain)
	if !allowed && q.typ == dnsmessage.TypePTR {
		_, _, allowed = e.given.find(q.domain, now)
	}
	if !allowed {
		e.figures.Refused++
	}
	if !allowed || e.cfg.Audit {
		e.report(q.domain, q.typ, why, now)
	}
	return allowed
}

// allows judges a name that leads to others.
func (e *Engine) allows(name domain.Name, aliases ...domain.Name) (bool, Why) {
	if name == "" || below(name, designated) {
		return false, ByDefault
	}
	if e.cfg.Audit {
		return true, Allowed
	}
	switch v := e.rules.Judge(name, aliases...); {
	case v.Allowed:
		return true, Allowed
	case v.Rule < 0:
		return false, ByDefault
	case len(aliases) > 0:
		return false, ByAlias
	}
	return false, ByRule
}

// designated is the name by which a client learns of other resolvers than the one that
// it was told of: RFC 9462 section 4.
const designated = "resolver.arpa"

// below reports whether a name is a domain or lies in it.
func below(name, domain domain.Name) bool {
	rest, ok := strings.CutSuffix(string(name), string(domain))
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}

// maxSearched is how many labels of a search domain are recognised where none was
// told: Kubernetes has five.
const maxSearched = 8

// refusalCode is what a client hears of a name that is refused. One that its
// resolver has made by appending a domain to another name does not exist: resolvers
// would not get to the names behind it otherwise.
func (e *Engine) refusalCode(name domain.Name) dnsmessage.RCode {
	if e.cfg.NXDOMAIN {
		return nxDomain
	}
	for _, d := range e.cfg.Search {
		if below(name, d) {
			return nxDomain
		}
	}
	rest := string(name)
	for range maxSearched {
		i := strings.LastIndexByte(rest, '.')
		if i < 0 {
			break
		}
		rest = rest[:i]
		if v := e.rules.Judge(domain.Name(rest)); v.Allowed && v.Rule >= 0 {
			return nxDomain
		}
	}
	return refused
}
