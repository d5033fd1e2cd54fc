// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// Transfer sends size random bytes over one TCP connection from a client in
// one namespace to a server in another, or back when down is set, and
// compares checksums. Connections end by half-closes. addr is where the
// client finds the server, which listens on listen.
func Transfer(client, server *NS, listen, addr string, size int64, down bool, timeout time.Duration) error {
	ln := server.Listen("tcp", listen)
	defer ln.Close()
	type result struct {
		sum string
		err error
	}
	far := make(chan result, 1)
	deadline := time.Now().Add(timeout)
	go func() {
		_ = ln.(*net.TCPListener).SetDeadline(deadline)
		c, err := ln.Accept()
		if err != nil {
			far <- result{err: fmt.Errorf("server: %w", err)}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(deadline)
		sum, err := oneWay(c.(*net.TCPConn), size, down)
		far <- result{sum, err}
	}()
	c, err := client.DialError("tcp", addr, Patient(15*time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(deadline)
	sum, err := oneWay(c.(*net.TCPConn), size, !down)
	if err != nil {
		c.Close() // lets the other side end
	}
	r := <-far
	if err := errors.Join(err, r.err); err != nil {
		return err
	}
	if sum != r.sum {
		return fmt.Errorf("sha256 differs: %s and %s", sum, r.sum)
	}
	return nil
}

// oneWay sends and waits for the peer's half-close, or receives up to the
// peer's half-close, and returns the checksum of what went over the wire.
func oneWay(c *net.TCPConn, size int64, send bool) (string, error) {
	h := sha256.New()
	if send {
		src := rand.NewChaCha8([32]byte{byte(size), byte(size >> 20)})
		n, err := io.CopyBuffer(io.MultiWriter(c, h), onlyReader{io.LimitReader(src, size)}, make([]byte, 256<<10))
		if err != nil {
			return "", fmt.Errorf("sent %d of %d: %w", n, size, err)
		}
		if err := c.CloseWrite(); err != nil {
			return "", err
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			return "", fmt.Errorf("waiting for the peer's end: %w", err)
		}
	} else {
		n, err := io.CopyBuffer(onlyWriter{h}, onlyReader{c}, make([]byte, 256<<10))
		if err != nil {
			return "", fmt.Errorf("received %d of %d: %w", n, size, err)
		}
		if n != size {
			return "", fmt.Errorf("received %d of %d bytes", n, size)
		}
		if err := c.CloseWrite(); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// onlyReader and onlyWriter hide the methods by which io.Copy would bypass
// the large buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// Echo serves TCP connections by sending back what comes in, up to the
// half-close.
func Echo(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// EchoUDP sends datagrams back where they came from.
func EchoUDP(c *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

// Ask writes a message to a new connection, half-closes it where the network
// has that, and returns what comes back.
func Ask(n *NS, network, addr, message string) (string, error) {
	c, err := n.DialError(network, addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, message); err != nil {
		return "", err
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
		b, err := io.ReadAll(c)
		return string(b), err
	}
	b := make([]byte, 1<<16)
	k, err := c.Read(b)
	return string(b[:k]), err
}
