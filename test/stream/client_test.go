// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}

// client is QEMU's end of the stream socket.
type client struct {
	*net.UnixConn
	t    *testing.T
	rest []byte
}

func (p *passt) connect(t *testing.T) *client {
	t.Helper()
	var c *net.UnixConn
	var err error
	for range 200 {
		c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: p.Path, Net: "unix"})
		if !errors.Is(err, syscall.EAGAIN) { // many wait to be accepted
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{UnixConn: c, t: t}
}

// prefixed puts the length before a frame.
func prefixed(frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
}

// put writes bytes to the stream as they are.
func (c *client) put(b []byte) {
	c.t.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("writing %d bytes: %v", len(b), err)
	}
}

// next returns the next frame.
func (c *client) next(wait time.Duration) ([]byte, error) {
	_ = c.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 1<<16)
	for {
		if len(c.rest) >= 4 {
			n := int(binary.BigEndian.Uint32(c.rest))
			if n < 14 || n > 65535 {
				c.t.Fatalf("frame of %d bytes from passt", n)
			}
			if len(c.rest) >= 4+n {
				frame := c.rest[4 : 4+n]
				c.rest = c.rest[4+n:]
				return frame, nil
			}
		}
		n, err := c.Read(buf)
		c.rest = append(c.rest, buf[:n]...)
		if err != nil {
			return nil, err
		}
	}
}

// ended tells whether passt closes the connection.
func (c *client) ended() bool {
	for {
		_, err := c.next(20 * time.Second)
		if err != nil {
			return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		}
	}
}

// arp is a request for the router's hardware address.
func arp() []byte {
	return build(&layers.Ethernet{SrcMAC: guestMAC, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: guestMAC, SourceProtAddress: net.ParseIP(netlab.Host4).To4(),
			DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP(netlab.Gateway4).To4()})
}

func build(l ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// answered reads up to the answer to arp.
func (c *client) answered() bool {
	c.t.Helper()
	deadline := time.Now().Add(netlab.Patient(20 * time.Second))
	for time.Now().Before(deadline) {
		frame, err := c.next(time.Until(deadline))
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.t.Logf("reading: %v", err)
			}
			return false
		}
		// An answer (2) from the router's address.
		if binary.BigEndian.Uint16(frame[12:]) == 0x0806 && frame[21] == 2 && bytes.Equal(frame[28:32], net.ParseIP(netlab.Gateway4).To4()) {
			return true
		}
	}
	return false
}

// works asks for the router's hardware address and waits for the answer.
func (c *client) works() {
	c.t.Helper()
	c.put(prefixed(arp()))
	if !c.answered() {
		c.t.Fatal("an ARP request was not answered")
	}
}

// nextWorks connects another client, right after the last one is gone, and
// lets it work.
func (p *passt) nextWorks(t *testing.T) {
	t.Helper()
	c := p.connect(t)
	c.works()
	c.Close()
}
