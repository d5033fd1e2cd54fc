// SPDX-License-Identifier: Apache-2.0

// Package dns is a forwarding resolver that answers for the names that rules
// allow, and tells of each address before its client knows it. It is a state
// machine: sockets, clock and chance come from outside (Host, Config).
//
// The way of a question: a client's message is read (query.go), its name judged,
// and refused, or found in the cache, or asked of a resolver (upstream.go). Of the
// resolver's answer only what was asked for is taken (answer.go, svcb.go). The
// broker is told which addresses it holds, and says which of them may be told on
// (grant.go). The rest is cut out, and the client is answered (reply.go). That is
// done for each answer, those from the cache included: what the client is told
// stands in the broker's table at that moment.
//
// What it does with which messages and types, and why:
//
//   - A name that is refused is never asked of anybody. The client hears REFUSED, or
//     NXDOMAIN where its resolver would not get on otherwise: below a domain that it
//     searches, and for an allowed name with something behind it, as an unknown
//     search list makes them. glibc ends its search at REFUSED, musl ignores REFUSED
//     until its time is over; Go goes on; Python asks the C library.
//   - Names are letters, digits, hyphens and underscores, as rules are. Others are
//     refused, and so are the root, other classes than IN, resolver.arpa (RFC 9462:
//     it would tell of resolvers that nobody filters), AXFR and IXFR.
//   - ANY is answered by ourselves with an HINFO record (RFC 8482).
//   - Types whose data may hold compressed names, which nobody can pass on without
//     knowing them (RFC 3597 section 4), and WKS, which holds addresses that nobody
//     uses, are not implemented (NOTIMP); NS, SOA, PTR, MX, SRV, CNAME are read and
//     written anew. NAPTR and KX are passed on if their names are not compressed, which
//     those of today's servers are not. All other types are passed on as they are.
//   - DNSSEC: DO is not passed on, AD never set, since answers are cut. Nor is CD: a
//     guest must not switch off what the host's resolver checks, or a forged address
//     would get into the table of an allowed name.
//   - Of additional and authority sections nothing is passed on but the SOA record of a
//     negative answer.
//   - If nothing of an answer is granted, the name has no addresses (NODATA), for a
//     client asks for A and AAAA at once, and what is wrong with one type must not
//     spoil the other.
package dns
