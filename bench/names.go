// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/bench/report"
	"aldente/test/netlab"
)

// forwardedDNS is where a guest asks for names: --dns-forward.
const forwardedDNS = "169.254.1.1"

// startNamed starts passt's pasta or this one with its resolver forwarded, and this one
// with a rule by name and nothing else allowed.
func startNamed(lab *netlab.Lab, c contestant, mtu int) *entrant {
	if c.binary == "" {
		e := startVeth(lab, c, mtu)
		e.resolver = lab.Remote4
		return e
	}
	var rules []string
	if c.name == report.Ours || strings.Contains(c.version, report.Ours) { // an older one of ours is compared with it
		rules = ruleByName
	}
	return startForwarding(lab, c, mtu, rules...)
}

// ruleByName lets the guest have what serveNames knows, and nothing else.
var ruleByName = []string{"--allow", "*.bench.test", "--deny", "any"}

// startForwarding starts one with its resolver forwarded.
func startForwarding(lab *netlab.Lab, c contestant, mtu int, rules ...string) *entrant {
	args := []string{"--config-net", "--no-map-gw", "-m", fmt.Sprint(mtu), "-t", "none", "-u", "none", "--dns-forward", forwardedDNS, "--dns-host", lab.Remote4}
	g := lab.GuestWith(netlab.GuestSpec{Binary: c.binary, Timeout: time.Hour, Args: append(args, rules...)})
	ports(g.NS, guestPorts)
	return &entrant{name: c.name, guest: g.NS, pids: g.Processes, resolver: forwardedDNS}
}

// serveNames has the remote be the resolver: whatever is asked for is the remote.
func serveNames(lab *netlab.Lab) {
	netlab.ServeDNS(lab.Remote, lab.Remote4+":53", netip.MustParseAddr(lab.Remote4), netip.MustParseAddr(lab.Remote6))
}

// namesGroup is what names cost, in instances of their own.
func namesGroup() group {
	return group{mtu: 65520, prepare: serveNames, start: startNamed, rows: []row{
		namesRow("first connection to a name, 1 clients", 1), namesRow("first connection to a name, 16 clients", 16)}}
}

// namesRow is of one question for a name that nobody has asked for before, a connection to
// the address that comes, and one byte there and back.
func namesRow(name string, clients int) row {
	return rateRow(name, func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
		w := outbound(e, lab)
		ln := w.server.Listen("tcp4", w.listen)
		defer ln.Close()
		go oneByte(ln)
		_, port, _ := net.SplitHostPort(w.listen)
		p := w.client.Start(netlab.Spec{Args: []string{"/proc/self/exe", namesArg, e.resolver, port, fmt.Sprint(clients), span.String()}, Timeout: 30*time.Second + 2*span})
		st := p.Wait()
		var r rate
		if err := json.Unmarshal([]byte(p.Stdout()), &r); st != 0 || err != nil {
			return r, fmt.Errorf("client: status %d, %v\n%s", st, err, p.Output())
		}
		return r, nil
	})
}

// namesArg as first argument makes the program the client of namesRow.
const namesArg = "names-client"

// namesClient is the part of namesRow that runs inside the guest's namespace.
func namesClient(resolver, port, clients, span string) error {
	n, err := strconv.Atoi(clients)
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(span)
	if err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}
	dialer.SetMultipathTCP(false)
	r, err := requests(n, d, func(int) error {
		addr, err := address(resolver)
		if err != nil {
			return err
		}
		return connection(&dialer, net.JoinHostPort(addr, port))
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// address asks for a name of its own by a socket of its own, as C libraries do: by another
// where nothing comes, since a translator may want that port of the host's, and somebody
// else have it.
func address(resolver string) (addr string, err error) {
	for range 3 {
		var c net.Conn
		if c, err = net.Dial("udp4", net.JoinHostPort(resolver, "53")); err != nil {
			return "", err
		}
		addr, err = addressBy(c)
		c.Close()
		if !os.IsTimeout(err) {
			break
		}
	}
	return addr, err
}

// addressBy asks for a name that nobody has asked for before.
func addressBy(c net.Conn) (string, error) {
	name, err := dnsmessage.NewName(fmt.Sprintf("n%x.bench.test.", rand.Uint64()))
	if err != nil {
		return "", err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		return "", err
	}
	buf, k := make([]byte, 1500), 0
	for range 3 { // a datagram may be lost
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err = c.Write(b); err == nil {
			k, err = c.Read(buf)
		}
		if !os.IsTimeout(err) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	var answer dnsmessage.Message
	if err := answer.Unpack(buf[:k]); err != nil {
		return "", err
	}
	for _, r := range answer.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok && answer.ID == m.ID {
			return netip.AddrFrom4(a.A).String(), nil
		}
	}
	return "", errors.New("an answer without an address: " + answer.GoString())
}
