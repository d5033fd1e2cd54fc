// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"maps"
	"strings"
	"testing"

	"aldente/ipc"
)

const someName = "www.example.org"

// hellos are those of programs.
func hellos(t failer) map[string][]byte {
	all := recorded(t)
	for name, c := range map[string]*tls.Config{
		"go":                     {ServerName: someName},
		"go, TLS 1.2":            {ServerName: someName, MaxVersion: tls.VersionTLS12},
		"go, many curves":        {ServerName: someName, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}},
		"go, upper case":         {ServerName: "WWW.Example.ORG"},
		"go, protocols":          {ServerName: someName, NextProtos: []string{"h2", strings.Repeat("x", 255), "http/1.1"}},
		"go, dot":                {ServerName: someName + "."},
		"go-noname":              {InsecureSkipVerify: true},
		"go, an address: noname": {ServerName: "192.0.2.1"},
	} {
		all[name] = goHello(t, c)
	}
	return all
}

// TestPrograms: what programs send says what they mean, whole and cut at every byte, and
// nothing is said before it is whole.
func TestPrograms(t *testing.T) {
	all := hellos(t)
	for name, b := range maps.Clone(all) {
		if name == "go" || name == "openssl.bin" { // in records of its own making
			all[name+", a byte to a record"] = record(b[5:], 1)
			all[name+", seven bytes to a record"] = record(b[5:], 7)
		}
	}
	for name, b := range all {
		want, wantName := uint8(ipc.FoundName), someName
		if strings.Contains(name, "noname") {
			want, wantName = ipc.FoundNoName, ""
		}
		check := func(found uint8, r *TLS, how string, at int) {
			if found != want || r.Name() != wantName {
				t.Fatalf("%s, %s %d: %s, %q", name, how, at, ipc.FoundText(found), r.Name())
			}
		}
		var whole TLS
		check(whole.Read(b), &whole, "whole", 0)
		for at := range len(b) - 1 {
			var r TLS
			if found := r.Read(b[:at]); found != more {
				t.Fatalf("%s: %s after %d of %d bytes", name, ipc.FoundText(found), at, len(b))
			}
			check(r.Read(b[at:]), &r, "cut at", at)
		}
		var bytewise TLS
		for i := range b {
			found := bytewise.Read(b[i : i+1])
			if last := i == len(b)-1; last != (found != more) {
				t.Fatalf("%s: %s at byte %d of %d", name, ipc.FoundText(found), i, len(b))
			}
		}
		check(bytewise.Read([]byte("early data")), &bytewise, "bytewise", 0)
	}
}

// oddHello is what a connection may begin with.
type oddHello struct {
	b    []byte
	want uint8
}

// oddHellos are such that are good and odd, and what is no hello, or one with which two
// readers could mean two things.
func oddHellos() map[string]oddHello {
	good := clientHelloOf(sni(someName))
	two := append(bytes.Clone(good), good...)
	long := clientHelloOf(sni(someName), ext(21, make([]byte, maxHello)))
	mostly := clientHelloOf(sni(someName), ext(21, make([]byte, maxHello-300)))
	alter := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	afterFixed := 4 + 2 + 32 + 1 + 32
	return map[string]oddHello{
		"good":                              {record(good, maxRecord), ipc.FoundName},
		"behind other extensions":           {record(clientHelloOf(ext(10, nil), ext(0xfe0d, make([]byte, 200)), sni(someName)), maxRecord), ipc.FoundName},
		"long":                              {record(mostly, maxRecord), ipc.FoundName},
		"long, in small records":            {record(mostly, 512), ipc.FoundName},
		"longest name":                      {record(clientHelloOf(sni(strings.Repeat("a23456789.", 25)+"abc")), maxRecord), ipc.FoundName},
		"underscore, hyphens, digits":       {record(clientHelloOf(sni("_a.1--2.x-")), maxRecord), ipc.FoundName},
		"too long":                          {record(long, maxRecord), ipc.FoundTooLong},
		"too many records":                  {record(mostly, 1), ipc.FoundTooLong},
		"no extensions":                     {record(message24(clientHello, good[4:afterFixed+6]), maxRecord), ipc.FoundNoName},
		"no server name":                    {record(clientHelloOf(ext(10, nil)), maxRecord), ipc.FoundNoName},
		"two messages in a record":          {record(two, maxRecord), ipc.FoundNotHello},
		"a byte behind it in its record":    {record(append(bytes.Clone(good), 0), maxRecord), ipc.FoundNotHello},
		"two lists":                         {record(clientHelloOf(sni("a.example"), sni(someName)), maxRecord), ipc.FoundNotHello},
		"two names":                         {record(clientHelloOf(sni("a.example", someName)), maxRecord), ipc.FoundBadName},
		"an empty list":                     {record(clientHelloOf(sni()), maxRecord), ipc.FoundNotHello},
		"an empty name":                     {record(clientHelloOf(sni("")), maxRecord), ipc.FoundBadName},
		"an address":                        {record(clientHelloOf(sni("192.0.2.1")), maxRecord), ipc.FoundBadName},
		"an address of IPv6":                {record(clientHelloOf(sni("2001:db8::1")), maxRecord), ipc.FoundBadName},
		"a number":                          {record(clientHelloOf(sni("a.77")), maxRecord), ipc.FoundBadName},
		"a dot behind":                      {record(clientHelloOf(sni(someName+".")), maxRecord), ipc.FoundBadName},
		"a dot before":                      {record(clientHelloOf(sni("."+someName)), maxRecord), ipc.FoundBadName},
		"two dots":                          {record(clientHelloOf(sni("www..example")), maxRecord), ipc.FoundBadName},
		"a zero in it":                      {record(clientHelloOf(sni("www.example.org\x00.other.example")), maxRecord), ipc.FoundBadName},
		"a space":                           {record(clientHelloOf(sni("www.example.org ")), maxRecord), ipc.FoundBadName},
		"not ASCII":                         {record(clientHelloOf(sni("bücher.example")), maxRecord), ipc.FoundBadName},
		"a long label":                      {record(clientHelloOf(sni(strings.Repeat("a", 64)+".org")), maxRecord), ipc.FoundBadName},
		"a long last label":                 {record(clientHelloOf(sni("org."+strings.Repeat("a", 64))), maxRecord), ipc.FoundBadName},
		"a long name":                       {record(clientHelloOf(sni(strings.Repeat("a23456789.", 25)+"abcd")), maxRecord), ipc.FoundBadName},
		"another type of name":              {record(clientHelloOf(ext(0, []byte{0, 4, 1, 0, 1, 'a'})), maxRecord), ipc.FoundBadName},
		"a list that is shorter":            {record(clientHelloOf(ext(0, []byte{0, 3, 0, 0, 1, 'a'})), maxRecord), ipc.FoundNotHello},
		"a list that is longer":             {record(clientHelloOf(ext(0, []byte{0, 5, 0, 0, 1, 'a'})), maxRecord), ipc.FoundNotHello},
		"a name that is longer":             {record(clientHelloOf(ext(0, []byte{0, 4, 0, 0, 2, 'a'})), maxRecord), ipc.FoundNotHello},
		"extensions that end early":         {record(clientHelloOf([]byte{0, 0, 0, 9, 1}), maxRecord), ipc.FoundNotHello},
		"another message":                   {record(append([]byte{2}, good[1:]...), maxRecord), ipc.FoundNotHello},
		"of another version":                {record(alter(4, 2), maxRecord), ipc.FoundNotHello},
		"a session that is too long":        {record(alter(4+2+32, 33), maxRecord), ipc.FoundNotHello},
		"odd cipher suites":                 {record(alter(afterFixed+1, 3), maxRecord), ipc.FoundNotHello},
		"no cipher suites":                  {record(alter(afterFixed+1, 0), maxRecord), ipc.FoundNotHello},
		"no compression":                    {record(alter(afterFixed+4, 0), maxRecord), ipc.FoundNotHello},
		"an alert":                          {[]byte{21, 3, 1, 0, 2, 1, 0}, ipc.FoundNotHello},
		"a change of cipher first":          {append([]byte{20, 3, 3, 0, 1, 1}, record(good, maxRecord)...), ipc.FoundNotHello},
		"an alert amid records":             {append(record(good[:50], 50), 21, 3, 1, 0, 2, 1, 0), ipc.FoundNotHello},
		"an empty record":                   {append([]byte{22, 3, 1, 0, 0}, record(good, maxRecord)...), ipc.FoundNotHello},
		"a record that is too long":         {[]byte{22, 3, 1, 0x40, 1}, ipc.FoundNotHello},
		"SSL 2":                             {[]byte{0x80, 0x2e, 1, 3, 1}, ipc.FoundNotHello},
		"DTLS":                              {[]byte{22, 0xfe, 0xfd, 0, 0}, ipc.FoundNotHello},
		"a request of HTTP":                 {[]byte("GET / HTTP/1.1\r\n"), ipc.FoundNotHello},
		"SSH":                               {[]byte("SSH-2.0-x\r\n"), ipc.FoundNotHello},
		"extensions behind which is a byte": {record(message24(clientHello, append(bytes.Clone(good[4:]), 0)), maxRecord), ipc.FoundNotHello},
	}
}

// TestRefused: each of them is found to be what it is, in pieces of any size.
func TestRefused(t *testing.T) {
	for name, c := range oddHellos() {
		for _, size := range []int{1, 3, 1 << 20} {
			var r TLS
			found := uint8(more)
			for b := c.b; len(b) > 0; b = b[min(size, len(b)):] {
				found = r.Read(b[:min(size, len(b))])
			}
			if found != c.want {
				t.Errorf("%s, %d bytes at a time: %s, not %s", name, size, ipc.FoundText(found), ipc.FoundText(c.want))
			}
			if found == ipc.FoundName != (r.Name() != "") {
				t.Errorf("%s: name %q", name, r.Name())
			}
		}
	}
}

// TestBounded: of a hello that never ends, no more is kept than may be, and it is
// refused in the end.
func TestBounded(t *testing.T) {
	start := []byte{clientHello, 0, 0x3f, 0xfc} // as long as may be
	for _, size := range []int{1, 2, 100, maxRecord} {
		var r TLS
		b := start
		for n := 0; ; n++ {
			found := r.Read(record(b, size))
			if cap(r.msg.buf) > 4*maxHello {
				t.Fatalf("%d bytes are kept", cap(r.msg.buf))
			}
			if found == ipc.FoundTooLong || found == ipc.FoundNotHello {
				break
			}
			if found != more || n > 3*maxHello {
				t.Fatalf("records of %d bytes: %s", size, ipc.FoundText(found))
			}
			b = make([]byte, size)
		}
		if r.total > ipc.MaxStaged {
			t.Errorf("%d bytes were looked at", r.total)
		}
	}
}

// TestVersions: records and hellos of all versions of TLS say the same.
func TestVersions(t *testing.T) {
	for _, inRecord := range []uint16{0x300, 0x301, 0x302, 0x303, 0x304} {
		for _, inHello := range []uint16{0x300, 0x301, 0x302, 0x303, 0x304} {
			msg := clientHelloOf(sni(someName))
			binary.BigEndian.PutUint16(msg[4:], inHello)
			b := record(msg, maxRecord)
			binary.BigEndian.PutUint16(b[1:], inRecord)
			var r TLS
			if found := r.Read(b); found != ipc.FoundName {
				t.Errorf("%x in %x: %s", inHello, inRecord, ipc.FoundText(found))
			}
		}
	}
}
