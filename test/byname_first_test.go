// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/test/netlab"
)

// TestByNameFirst: whoever has an address of a name's connects there, at once and the first
// time, though none of these addresses was ever asked for: the broker knows of it before it
// refuses.
func TestByNameFirst(t *testing.T) {
	needOurs(t)
	lab, z := namesLab(t)
	lab.Remote.IP("route add local 198.18.0.0/16 dev lo")
	const clients, each = 6, 40
	for i := range clients * each {
		z.Set(fmt.Sprintf("n%d.pythonhosted.test", i), 60, fmt.Sprintf("198.18.%d.%d", i/200, i%200+1))
	}
	g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				at, err := firstAddress(g.NS, fmt.Sprintf("n%d.pythonhosted.test.", c*each+i))
				if err == nil {
					var conn net.Conn
					if conn, err = g.DialError("tcp", net.JoinHostPort(at, "443"), 10*time.Second); err == nil {
						conn.Close()
					}
				}
				if err != nil {
					t.Errorf("name %d of client %d: %v", i, c, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.Log(g.Proc.Output())
	}
}

// firstAddress asks for a name by a socket of its own, and again if a datagram was lost.
func firstAddress(n *netlab.NS, name string) (string, error) {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	question, err := m.Pack()
	if err != nil {
		return "", err
	}
	c, err := n.DialError("udp", "192.0.2.9:53", 10*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, k := make([]byte, 1500), 0
	for range 4 {
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err = c.Write(question); err == nil {
			k, err = c.Read(b)
		}
		if err == nil || !os.IsTimeout(err) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	if err := m.Unpack(b[:k]); err != nil {
		return "", err
	}
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			return net.IP(a.A[:]).String(), nil
		}
	}
	return "", errors.New("no address: " + m.GoString())
}
