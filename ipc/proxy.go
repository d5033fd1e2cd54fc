// SPDX-License-Identifier: Apache-2.0

package ipc

import "fmt"

// Records about connections that go by a proxy, between the broker and the process for
// names.
//
// The broker connects to the proxy, and passes the socket on with Relay. The process for
// names asks the proxy for the destination, reads its answer and not one byte more, and
// says in Relayed what it was. It keeps nothing of the socket. Which proxy it is, and as
// whom to ask it, comes at the start with Proxy.

// Kinds of these.
const (
	NamesKindProxy   Kind = 0x20b // Proxy, at the start
	NamesKindRelay   Kind = 0x20c // Relay, with the socket to the proxy
	NamesKindRelayed Kind = 0x28a // Relayed
)

// What a proxy speaks.
const (
	ProxySOCKS5 = 1 + iota // RFC 1928, RFC 1929
	ProxyHTTP              // CONNECT, RFC 9110 section 9.3.6
	endOfProxies
)

// MaxProxySecret is the longest user's name and the longest password, RFC 1929 section 2.
const MaxProxySecret = 255

// Proxy says how the proxy is spoken to. With a user there is a password.
type Proxy struct {
	What      uint8                // Proxy*
	UserLen   uint8                // bytes of User; zero: nobody
	SecretLen uint8                // bytes of Secret
	Reserved  uint8                // zero
	User      [MaxProxySecret]byte // beyond UserLen: zero
	Secret    [MaxProxySecret]byte // beyond SecretLen: zero
}

// Relay has a proxy asked for a destination, by the socket that comes with it.
type Relay struct {
	ID       uint32   // of the flow, as in Stage
	Port     uint16   // of the destination, never zero
	Reserved [2]byte  // zero
	Addr     [16]byte // of the destination
	Name     Name     // its name, to be said in the address's place; empty: the address
}

// Relayed says what a proxy has answered.
type Relayed struct {
	ID     uint32 // as in Relay
	Result uint8  // Relay*
	Zero   uint8  // zero
	Code   uint16 // that the proxy has given: of SOCKS, or HTTP's status; zero: none
}

// What a proxy may answer, or how it may fail to.
const (
	RelayDone        = 1 + iota // what follows in the socket is the destination's
	RelayDenied                 // it does not let us
	RelayAuth                   // it does not know us
	RelayNetwork                // no way to the network
	RelayHost                   // no way to the host
	RelayRefused                // the destination has refused the connection
	RelayTimeout                // it has not answered in time
	RelayUnsupported            // the proxy cannot do that
	RelayFailed                 // it does not say why
	RelayGarbage                // what no proxy answers
	RelayClosed                 // the end, before there was an answer
	RelayNoRoom                 // too many at a time
	endOfRelayed
)

// RelayText is what a Relay* is, for people.
func RelayText(r uint8) string {
	if r == 0 || r >= endOfRelayed {
		return "unknown"
	}
	return [endOfRelayed]string{RelayDone: "connected", RelayDenied: "the proxy does not allow it", RelayAuth: "the proxy does not accept user and password",
		RelayNetwork: "the proxy has no way to the network", RelayHost: "the proxy has no way to the host", RelayRefused: "the connection was refused",
		RelayTimeout: "the proxy had no answer in time", RelayUnsupported: "the proxy cannot do that", RelayFailed: "the proxy failed",
		RelayGarbage: "what was answered is no proxy's answer", RelayClosed: "the proxy closed the connection", RelayNoRoom: "too many connections at a time"}[r]
}

// Encode returns the record.
func (p *Proxy) Encode() []byte { return encodeFixed(NamesKindProxy, p) }

// Decode reads exactly one record and checks its ranges.
func (p *Proxy) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindProxy, p); err != nil {
		return err
	}
	bad := p.What == 0 || p.What >= endOfProxies || p.Reserved != 0 || (p.UserLen == 0) != (p.SecretLen == 0)
	for i := range MaxProxySecret {
		bad = bad || i >= int(p.UserLen) && p.User[i] != 0 || i >= int(p.SecretLen) && p.Secret[i] != 0
	}
	if bad {
		return fmt.Errorf("%w: proxy of kind %d", ErrMalformed, p.What) // and no word of what is in it
	}
	return nil
}

// Encode returns the record.
func (r *Relay) Encode() []byte { return encodeFixed(NamesKindRelay, r) }

// Decode reads exactly one record and checks its ranges.
func (r *Relay) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindRelay, r); err != nil {
		return err
	}
	if r.ID == 0 || r.Port == 0 || r.Reserved != [2]byte{} || !r.Name.plain(true) {
		return fmt.Errorf("%w: relay %d to port %d", ErrMalformed, r.ID, r.Port)
	}
	return nil
}

// Encode returns the record.
func (r *Relayed) Encode() []byte { return encodeFixed(NamesKindRelayed, r) }

// Decode reads exactly one record and checks its ranges.
func (r *Relayed) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindRelayed, r); err != nil {
		return err
	}
	if r.Result == 0 || r.Result >= endOfRelayed || r.Zero != 0 {
		return fmt.Errorf("%w: relay %d has come to %d", ErrMalformed, r.ID, r.Result)
	}
	return nil
}
