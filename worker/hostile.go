// SPDX-License-Identifier: Apache-2.0

//go:build captive && !race

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// What captured code might tell the broker.

var protocols = map[string]uint8{
	"tcp": ipc.ProtoTCP, "udp": ipc.ProtoUDP, "icmp": ipc.ProtoICMP, "icmpv6": ipc.ProtoICMPv6,
}

// hostile executes the words that speak to the broker:
//
//	open=PROTO,DST,PORT[,SRC,PORT]   a flow; says how it was answered
//	reply=DST,PORT,SRC               the same for answers of a UDP listener
//	bypass=PROTO,DST,PORT,SRC        the same for the far end of the bypass
//	member=PROTO,GROUP,PORT          the same for what comes to a group
//	record=HEX                       any bytes
//	burst=N,PROTO,DST,PORT           N requests as fast as they go, answers read
//	unread=N,PROTO,DST,PORT            N requests, no answer read
//	hold=N,PROTO,DST,PORT           N flows, none closed
//	events=N                         N events
//	figures=HOW                      lies about figures, see lie
//	fd=                              a descriptor, which takes a forbidden call
func (c *scriptedWorker) hostile(key, value string) string {
	f := strings.Split(value, ",")
	switch key {
	case "open", "reply", "bypass", "member":
		o, err := c.request(key, f)
		if err != nil {
			return err.Error()
		}
		return c.ask(&o)
	case "record":
		return c.record(value)
	case "figures":
		return c.lie(value)
	case "hold":
		n, _ := strconv.Atoi(f[0])
		o, err := c.request("open", f[1:])
		if err != nil {
			return err.Error()
		}
		return c.holdAll(n, &o)
	case "burst", "unread":
		n, _ := strconv.Atoi(f[0])
		o, err := c.request("open", f[1:])
		if err != nil {
			return err.Error()
		}
		return c.burst(n, &o, key == "burst")
	case "events":
		n, _ := strconv.Atoi(value)
		var rec [ipc.EventSize]byte
		(&ipc.Event{Code: ipc.EventLinkClosed}).Encode(rec[:])
		for range n {
			if _, err := unix.Write(c.control, rec[:]); err != nil {
				return err.Error()
			}
		}
		return "sent"
	}
	return ""
}

// request makes a request of a script's fields.
func (c *scriptedWorker) request(key string, f []string) (o ipc.Open, err error) {
	if key == "reply" {
		f = append([]string{"udp"}, f...)
	}
	if len(f) < 3 {
		return o, errors.New("too few fields")
	}
	o.Proto = protocols[f[0]]
	dst, err := netip.ParseAddr(f[1])
	if err != nil {
		return o, err
	}
	port, err := strconv.ParseUint(f[2], 10, 16)
	if err != nil {
		return o, err
	}
	o.Dst, o.DstPort, o.SrcPort = dst.As16(), uint16(port), 40000
	src := netip.IPv6Unspecified()
	if dst.Unmap().Is4() {
		src = netip.IPv4Unspecified()
	}
	if len(f) > 3 {
		if src, err = netip.ParseAddr(f[3]); err != nil {
			return o, err
		}
	}
	o.Src = src.As16()
	o.Token = uint64(o.Proto)
	if key == "member" {
		o.Src, o.SrcPort, o.Flags = o.Dst, o.DstPort, ipc.OpenMember
		return o, nil
	}
	if key != "open" {
		o.Listener = c.ids[o.Proto]
	}
	if key == "reply" {
		o.SrcPort = localPort(c.held.Datagram)
	}
	if key == "bypass" {
		o.Flags = ipc.OpenBypass
	}
	return o, nil
}

// localPort is getsockname(2) by itself: that of x/sys asks for more.
func localPort(fd int) uint16 {
	var sa unix.RawSockaddrInet6
	n := uint32(unsafe.Sizeof(sa))
	unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)))
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
}

// ask sends one request and says how it was answered.
func (c *scriptedWorker) ask(o *ipc.Open) string {
	var rec [ipc.OpenSize]byte
	o.Encode(rec[:])
	if _, err := unix.Write(c.control, rec[:]); err != nil {
		return err.Error()
	}
	a, fd, err := c.answer()
	switch {
	case err != nil:
		return err.Error()
	case a.Flags&ipc.OpenedProhibited != 0:
		return "prohibited"
	case a.Errno != 0:
		return unix.ErrnoName(unix.Errno(a.Errno))
	}
	c.hold(o.Proto, fd)
	_, err = unix.Write(fd, []byte("captive"))
	if errors.Is(err, unix.EAGAIN) {
		err = nil // a connection on its way
	}
	return fmt.Sprintf("opened %s, written: %v", netip.AddrFrom16(a.Addr).Unmap(), err)
}

func (c *scriptedWorker) answer() (a ipc.Opened, fd int, err error) {
	buf := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(c.control, buf, 0)
	if err == nil {
		err = a.Decode(buf[:n])
	}
	return a, fd, err
}

// holdAll opens flows and keeps them, as many as it gets.
func (c *scriptedWorker) holdAll(n int, o *ipc.Open) string {
	var rec [ipc.OpenSize]byte
	o.Encode(rec[:])
	for held := range n {
		if _, err := unix.Write(c.control, rec[:]); err != nil {
			return fmt.Sprintf("%d held, then %v", held, err)
		}
		if _, fd, err := c.answer(); err != nil || fd < 0 {
			return fmt.Sprintf("%d held, then none", held)
		}
	}
	return fmt.Sprintf("%d held", n)
}

// record sends bytes as one message.
func (c *scriptedWorker) record(hex string) string {
	b := make([]byte, 0, len(hex)/2)
	for ; len(hex) >= 2; hex = hex[2:] {
		v, err := strconv.ParseUint(hex[:2], 16, 8)
		if err != nil {
			return err.Error()
		}
		b = append(b, byte(v))
	}
	if _, err := unix.Write(c.control, b); err != nil {
		return err.Error()
	}
	return "sent"
}

// burst sends many requests, as many in a message as fit.
func (c *scriptedWorker) burst(n int, o *ipc.Open, listen bool) string {
	rec := make([]byte, ipc.MaxBatch*ipc.OpenSize)
	for i := range ipc.MaxBatch {
		o.Encode(rec[i*ipc.OpenSize:])
	}
	answered := 0
	for range n / ipc.MaxBatch {
		if _, err := unix.Write(c.control, rec); err != nil {
			return err.Error()
		}
		for listen && answered < n {
			_, fd, err := c.answer()
			if err != nil {
				return err.Error()
			}
			if fd >= 0 {
				unix.Close(fd)
			}
			if answered++; answered%ipc.MaxBatch == 0 {
				break
			}
		}
	}
	return fmt.Sprintf("%d answers", answered)
}
