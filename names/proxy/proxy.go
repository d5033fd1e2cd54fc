// SPDX-License-Identifier: Apache-2.0

// Package proxy is the client's side of what is said to a proxy before a connection goes
// on by it: SOCKS version 5 (RFC 1928, with users and passwords of RFC 1929), and CONNECT
// of HTTP/1.1 (RFC 9110 section 9.3.6).
//
// A Client makes no system calls. It says what is to be written and how much may be read:
// never more than what belongs to the proxy's answer for certain, since what follows is
// the destination's, and the guest's to read.
package proxy

import (
	"encoding/base64"
	"net/netip"
	"strconv"

	"aldente/ipc"
)

// Config says which proxy it is, and as whom to speak to it.
type Config struct {
	What         uint8  // ipc.Proxy*
	User, Secret []byte // up to ipc.MaxProxySecret bytes; without a user: nobody
}

// Target is where a connection is to lead.
type Target struct {
	Addr netip.AddrPort // never without a port
	Name string         // said in the address's place, which the port stays; empty: the address
}

// Client is one connection's part in that.
type Client struct {
	proxy  peer
	out    []byte // to be written
	result uint8  // ipc.Relay*, zero: not known yet
	code   uint16
}

// peer is a proxy of one kind.
type peer interface {
	// want is how much may be read at most.
	want() int
	// take takes what was read, no more than that. It returns what is to be written next,
	// and one of ipc.Relay* with the proxy's code once it is known.
	take(b []byte) (out []byte, result uint8, code uint16)
}

// New begins with a proxy. The config has to stay as it is until the end.
func New(c *Config, to Target) *Client {
	if c.What == ipc.ProxyHTTP {
		return &Client{proxy: &httpProxy{}, out: connect(c, to)}
	}
	s := &socks{config: c, to: to}
	return &Client{proxy: s, out: s.greeting()}
}

// Out is what is to be written now, before anything is read; empty: nothing.
func (c *Client) Out() []byte { return c.out }

// Wrote tells that n bytes of Out are written. They are wiped: there may be a secret in
// them.
func (c *Client) Wrote(n int) {
	clear(c.out[:n])
	c.out = c.out[n:]
}

// Want is how many bytes may be read now, at most; zero: none any more.
func (c *Client) Want() int {
	if c.result != 0 {
		return 0
	}
	return c.proxy.want()
}

// Read takes bytes that were read, no more than Want has said.
func (c *Client) Read(b []byte) {
	if len(b) == 0 || c.result != 0 {
		return
	}
	c.out, c.result, c.code = c.proxy.take(b)
}

// End tells that the proxy has closed the connection, or that it has ended otherwise.
func (c *Client) End() {
	if c.result == 0 {
		c.result = ipc.RelayClosed
	}
}

// Wipe forgets what was not written.
func (c *Client) Wipe() { clear(c.out) }

// Result is one of ipc.Relay* once it is known, with the code that the proxy has given;
// zero before.
func (c *Client) Result() (result uint8, code uint16) { return c.result, c.code }

// connect is the request for a tunnel. Host is the same as its target, RFC 9110 section
// 7.2.
func connect(c *Config, to Target) []byte {
	host := netip.AddrPortFrom(to.Addr.Addr().WithZone(""), to.Addr.Port()).String() // IPv6 in brackets
	if to.Name != "" {
		host = to.Name + ":" + strconv.Itoa(int(to.Addr.Port()))
	}
	// In one piece of memory: what append leaves behind nobody would wipe.
	b := make([]byte, 0, 64+2*len(host)+2*(len(c.User)+len(c.Secret)+2)+64)
	b = append(b, "CONNECT "+host+" HTTP/1.1\r\nHost: "+host+"\r\n"...)
	if len(c.User) > 0 {
		pair := make([]byte, 0, len(c.User)+1+len(c.Secret))
		pair = append(append(append(pair, c.User...), ':'), c.Secret...)
		b = append(b, "Proxy-Authorization: Basic "...) // RFC 7617 section 2
		b = base64.StdEncoding.AppendEncode(b, pair)
		b = append(b, "\r\n"...)
		clear(pair)
	}
	return append(b, "\r\n"...)
}
