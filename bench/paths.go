// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
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
