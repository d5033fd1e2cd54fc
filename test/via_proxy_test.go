// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"aldente/test/netlab"
)

// viaProxy is a proxy of SOCKS5 and of HTTP: it has at its own end what it is asked for.
type viaProxy struct {
	user  string      // with viaSecret; empty: nobody
	tls   *tls.Config // of what is at port 443
	mu    sync.Mutex
	asked []string
}

func (p *viaProxy) took() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.asked
	p.asked = nil
	return all
}

// listen has the proxy at port 1080 of some addresses.
func (p *viaProxy) listen(ns *netlab.NS, addrs ...string) {
	for _, addr := range addrs {
		ln := ns.Listen("tcp", net.JoinHostPort(addr, "1080"))
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					p.serve(c)
				}()
			}
		}()
	}
}

func (p *viaProxy) serve(c net.Conn) {
	r := bufio.NewReaderSize(c, 64<<10)
	first, err := r.Peek(1)
	if err != nil {
		return
	}
	to, answer := "", []byte(nil)
	refuse := func(code int) []byte { return []byte{5, byte(code), 0, 1, 0, 0, 0, 0, 0, 0} }
	if first[0] == 5 {
		if to = p.socks(c, r); to == "" {
			return
		}
		answer = append([]byte{5, 0, 0, 3, 5}, "proxyxx"...)
	} else {
		q, err := http.ReadRequest(r)
		if err != nil || q.Method != http.MethodConnect {
			return
		}
		to = q.Host
		want := ""
		if p.user != "" {
			want = "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+viaSecret))
		}
		if q.Header.Get("Proxy-Authorization") != want {
			fmt.Fprintf(c, "HTTP/1.1 407 Who\r\nContent-Length: 4\r\n\r\nwho?")
			return
		}
		answer = []byte("HTTP/1.1 200 Connection established\r\nVia: a test\r\n\r\n")
		refuse = func(code int) []byte { return fmt.Appendf(nil, "HTTP/1.1 %d No\r\n\r\nbody", code) }
	}
	p.mu.Lock()
	p.asked = append(p.asked, to)
	p.mu.Unlock()
	_, text, _ := net.SplitHostPort(to)
	port := 0
	fmt.Sscan(text, &port)
	switch {
	case port >= 9000:
		c.Write(refuse(port - 9000))
	case port == viaHang:
		io.Copy(io.Discard, r)
	case port == viaGarbage:
		c.Write(bytes.Repeat([]byte("garbage "), 4096))
	case port == viaClose:
	case port == viaBanner:
		c.Write(append(answer, "SSH-2.0-behind\r\n"...))
		io.Copy(c, r)
	case port == viaSlow:
		for i := range answer {
			c.Write(answer[i : i+1])
			time.Sleep(time.Millisecond)
		}
		io.Copy(c, r)
	case port == 443:
		c.Write(answer)
		server := tls.Server(viaConn{c, r}, p.tls)
		fmt.Fprintf(server, "served %s", map[bool]string{true: "behind"}[server.Handshake() == nil && server.ConnectionState().ServerName == "behind.test"])
	case port == viaBulk:
		c.Write(answer)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.Copy(c, io.LimitReader(&pattern{}, viaSize))
		}()
		h := sha256.New()
		io.CopyN(h, r, viaSize)
		<-sent
		c.Write(h.Sum(nil))
		io.Copy(io.Discard, r)
	default:
		c.Write(answer)
		io.Copy(c, r)
	}
}

// viaConn is a connection of which something was read already.
type viaConn struct {
	net.Conn
	r *bufio.Reader
}

func (c viaConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// socks returns where a connection is to lead, in SOCKS5; empty: nowhere.
func (p *viaProxy) socks(c net.Conn, r *bufio.Reader) string {
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	methods := read(int(read(2)[1]))
	want := byte(0)
	if p.user != "" {
		want = 2
	}
	if !slices.Contains(methods, want) {
		c.Write([]byte{5, 0xff})
		return ""
	}
	c.Write([]byte{5, want})
	if p.user != "" {
		user := string(read(int(read(2)[1])))
		if secret := string(read(int(read(1)[0]))); user != p.user || secret != viaSecret {
			c.Write([]byte{1, 1})
			return ""
		}
		c.Write([]byte{1, 0})
	}
	host := ""
	switch read(4)[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	case 4:
		host = net.IP(read(16)).String()
	}
	return net.JoinHostPort(host, fmt.Sprint(binary.BigEndian.Uint16(read(2))))
}
