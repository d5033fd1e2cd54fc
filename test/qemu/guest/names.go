// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/test/fetcher"
)

// fetch: NETWORK URL... is a client with Go's own resolver.
func fetch(args []string) error {
	fetcher.ByGo(args[0], args[1:])
	return nil
}

// names: SERVER NAME/TYPE... asks a resolver, by UDP and by TCP, for names and types by
// their numbers, and prints of each how many answers there were, or why not.
func names(args []string) error {
	for _, network := range []string{"udp", "tcp"} {
		for _, q := range args[1:] {
			name, typ, _ := strings.Cut(q, "/")
			n, err := strconv.ParseUint(typ, 10, 16)
			if err != nil {
				return err
			}
			what, err := question(network, args[0], name, dnsmessage.Type(n))
			if err != nil {
				what = "none"
			}
			fmt.Println(network, q, what)
		}
	}
	return nil
}

func question(network, server, name string, typ dnsmessage.Type) (string, error) {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return "", err
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: typ, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		return "", err
	}
	c, err := net.DialTimeout(network, server, 20*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if network == "tcp" {
		b, err = byTCP(c, b)
	} else {
		b, err = byUDP(c, b)
	}
	if err != nil {
		return "", err
	}
	if err := m.Unpack(b); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d", strings.TrimPrefix(m.RCode.String(), "RCode"), len(m.Answers)), nil
}

func byUDP(c net.Conn, query []byte) (answer []byte, err error) {
	b := make([]byte, 1<<16)
	for range 3 { // datagrams may get lost
		if _, err = c.Write(query); err != nil {
			return nil, err
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		var n int
		n, err = c.Read(b)
		var late net.Error
		if err == nil || !errors.As(err, &late) || !late.Timeout() {
			return b[:n], err
		}
	}
	return nil, err
}

func byTCP(c net.Conn, query []byte) ([]byte, error) {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}
