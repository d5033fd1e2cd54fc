// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"golang.org/x/sys/unix"
)

const patience = 120 * time.Second // the machine is emulated

// transfer: ADDRESS SIZE up|down. It prints the checksum of what went over the
// wire; the sender closes its half, then the receiver.
func transfer(args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", args[0], 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	h := sha256.New()
	if args[2] == "up" {
		b := make([]byte, 64<<10)
		for i := range b {
			b[i] = byte(i * 7)
		}
		for left := size; left > 0; {
			binary.BigEndian.PutUint64(b, uint64(left)) // no two chunks are the same
			n := min(left, int64(len(b)))
			h.Write(b[:n])
			if _, err := c.Write(b[:n]); err != nil {
				return err
			}
			left -= n
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			return err
		}
	} else if n, err := io.Copy(h, c); err != nil || n != size {
		return fmt.Errorf("received %d of %d: %v", n, size, err)
	}
	fmt.Printf("%x", h.Sum(nil))
	return nil
}

// datagrams: ADDRESS SIZE... sends a datagram of each size to an echo server
// and compares what comes back.
func datagrams(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	for _, s := range args[1:] {
		size, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		if err := echoed(c, size); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

func echoed(c net.Conn, size int) error {
	b, got := make([]byte, size), make([]byte, 1<<16)
	for i := range b {
		b[i] = byte(i * 13)
	}
	for range 3 { // datagrams may get lost
		// Of the first long one the kernel is told what the host's path takes, and tells
		// it once, in place of what comes.
		if _, err := c.Write(b); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		for {
			n, err := c.Read(got)
			if errors.Is(err, unix.EMSGSIZE) || err == nil && n != size {
				continue // late, of one before
			}
			if err != nil {
				break
			}
			if string(got[:n]) != string(b) {
				return errors.New("the echo differs")
			}
			return nil
		}
	}
	return errors.New("no echo")
}

// ask: ADDRESS MESSAGE prints what a server sends back.
func ask(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, args[1]); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	fmt.Print(string(b))
	return err
}

// lease: INTERFACE takes a DHCPv6 lease and prints what came with it, a line
// each.
func lease(args []string) error {
	m, err := request(args[0])
	if err != nil {
		return err
	}
	return show(m)
}

func request(ifname string) (*dhcpv6.Message, error) {
	c, err := nclient6.New(ifname, nclient6.WithTimeout(3*time.Second), nclient6.WithRetry(5))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	name := dhcpv6.WithRequestedOptions(dhcpv6.OptionFQDN)
	offer, err := c.Solicit(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("solicit: %w", err)
	}
	return c.Request(ctx, offer, name)
}

func show(m *dhcpv6.Message) error {
	na := m.Options.OneIANA()
	if na == nil || na.Options.OneAddress() == nil {
		return fmt.Errorf("no address: %v", m.Summary())
	}
	fmt.Println("address", na.Options.OneAddress().IPv6Addr)
	for _, a := range m.Options.DNS() {
		fmt.Println("dns", a)
	}
	if l := m.Options.DomainSearchList(); l != nil {
		fmt.Println("search", strings.Join(l.Labels, " "))
	}
	if f := m.Options.FQDN(); f != nil {
		fmt.Println("fqdn", strings.Join(f.DomainName.Labels, " "))
	}
	return nil
}

// advertisement: INTERFACE asks for a router advertisement, RFC 4861 section
// 4.2, and prints its fields and options, a line each.
func advertisement(args []string) error {
	ifi, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := hops(c.(*net.IPConn)); err != nil {
		return err
	}
	all := &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: ifi.Name}
	b := make([]byte, 1500)
	for range 5 {
		if _, err := c.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, all); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				break
			}
			if n >= 16 && b[0] == 134 {
				fmt.Printf("from %v\nhops %d\nflags %#x\nlifetime %d\n", from, b[4], b[5], binary.BigEndian.Uint16(b[6:]))
				return options(b[16:n])
			}
		}
	}
	return errors.New("no advertisement")
}

// hops sets the only hop limit that routers accept, RFC 4861 section 6.1.1.
func hops(c *net.IPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MULTICAST_HOPS, 255) })
	return errors.Join(e, err)
}

// options prints the options of RFC 4861 section 4.6 and RFC 8106.
func options(b []byte) error {
	for len(b) > 0 {
		if len(b) < 8 || b[1] == 0 || int(b[1])*8 > len(b) {
			return fmt.Errorf("options end with % x", b)
		}
		o := b[:int(b[1])*8]
		b = b[len(o):]
		ends := ""
		if (o[0] == 25 || o[0] == 31) && binary.BigEndian.Uint32(o[4:]) == 0 {
			ends = "no " // a lifetime of zero
		}
		addr := func(at int) netip.Addr { return netip.AddrFrom16([16]byte(o[at:])) }
		switch o[0] {
		case 1:
			fmt.Println("mac", net.HardwareAddr(o[2:8]))
		case 3:
			fmt.Printf("prefix %v/%d %#x %d %d\n", addr(16), o[2], o[3], binary.BigEndian.Uint32(o[4:]), binary.BigEndian.Uint32(o[8:]))
		case 5:
			fmt.Println("mtu", binary.BigEndian.Uint32(o[4:]))
		case 25:
			for at := 8; at+16 <= len(o); at += 16 {
				fmt.Println(ends+"dns", addr(at))
			}
		case 31:
			fmt.Println(ends+"search", strings.Join(domains(o[8:]), " "))
		default:
			fmt.Printf("option %d\n", o[0])
		}
	}
	return nil
}

// domains reads names as RFC 1035 section 3.1 encodes them, up to the padding.
func domains(b []byte) (names []string) {
	var labels []string
	for len(b) > 0 && int(b[0]) < len(b) {
		n := int(b[0])
		switch {
		case n > 0:
			labels = append(labels, string(b[1:1+n]))
		case len(labels) > 0:
			names, labels = append(names, strings.Join(labels, ".")), nil
		}
		b = b[1+n:]
	}
	return names
}
