// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"aldente/test/netlab"
)

// path is from where to where a measurement's connections go.
type path struct {
	client, server *netlab.NS
	dial, listen   string // the server's address, as the client and as the server has it
}

var lastPort atomic.Int32

// Ports that are forwarded to each guest: a measurement takes the next, since a
// translator may still hold data for the last.
const (
	forwarded = 16
	firstPort = 7000
)

// outbound goes from the guest to the remote.
func outbound(e *entrant, lab *netlab.Lab) path {
	addr := fmt.Sprintf("%s:%d", lab.Remote4, 10000+lastPort.Add(1)%50000)
	return path{e.guest, lab.Remote, addr, addr}
}

// inbound goes from the remote to the guest, by a port of the host.
func inbound(e *entrant, lab *netlab.Lab) path {
	port := e.port + int(lastPort.Add(1)%forwarded)
	return path{lab.Remote, e.guest, fmt.Sprintf("%s:%d", netlab.Host4, port), fmt.Sprintf("0.0.0.0:%d", port)}
}

// loopback goes from the host's loopback to the guest, by a port of the host.
func loopback(e *entrant, lab *netlab.Lab) path {
	p := inbound(e, lab)
	_, port, _ := net.SplitHostPort(p.dial)
	p.client, p.dial = lab.Host, "127.0.0.1:"+port
	return p
}

// connect returns both ends of a new connection.
func (p path) connect(ln net.Listener) (near, far net.Conn, err error) {
	if near, err = p.client.DialError("tcp4", p.dial, 5*time.Second); err != nil {
		return nil, nil, err
	}
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	if far, err = ln.Accept(); err != nil {
		near.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// greet returns a socket for datagrams, by which the server was asked once: what stands for a
// connection at a translator is there then, too. Some refuse a client's port that somebody
// else has on the host; then it is another.
func (p path) greet(server *net.UDPConn) (c net.Conn, err error) {
	b := []byte{'?'}
	for range 5 {
		if c, err = p.client.DialError("udp4", p.dial, time.Second); err != nil {
			return nil, err
		}
		soon := time.Now().Add(100 * time.Millisecond)
		_, _ = server.SetReadDeadline(soon), c.SetReadDeadline(soon)
		var from netip.AddrPort
		if _, err = c.Write(b); err == nil {
			_, from, err = server.ReadFromUDPAddrPort(b)
		}
		if err == nil {
			_, err = server.WriteToUDPAddrPort(b, from)
		}
		if err == nil {
			_, err = c.Read(b)
		}
		if err == nil {
			return c, errors.Join(server.SetReadDeadline(time.Time{}), c.SetReadDeadline(time.Time{}))
		}
		c.Close()
	}
	return nil, err
}
