// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"encoding/binary"
	"testing"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/names/hello/hellotest"
)

// FuzzClientHello: a connection's first bytes, in pieces of any size, are found to be
// what they are as a whole. Of what has a name, a plain reading of the same bytes finds
// the same.
func FuzzClientHello(f *testing.F) {
	for _, b := range hellos(f) {
		fuzz.Add(f, b, uint8(0))
	}
	for _, b := range [][]byte{record(clientHelloOf(sni(someName)), 7), record(clientHelloOf(sni("a.b", "c.d")), 40), record(clientHelloOf(sni("192.0.2.1")), 1000),
		record(clientHelloOf(sni(".a"), ext(1, nil)), 100), record(clientHelloOf(ext(0, []byte{0, 1})), 100), record(clientHelloOf([]byte{0, 0, 9}), 100),
		{22, 3, 1, 0, 0}, {22, 3, 1, 0, 3, 2, 0, 0}, record(message24(clientHello, make([]byte, 20000)), maxRecord), record([]byte{1, 0, 0, 0}, 4),
		record(message24(clientHello, make([]byte, 41)), 200), record(message24(clientHello, append([]byte{3, 3}, make([]byte, 50)...)), 200)} {
		fuzz.Add(f, b, uint8(3))
	}
	for _, c := range oddHellos() {
		fuzz.Add(f, c.b, uint8(100))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		var whole, pieces TLS
		want := whole.Read(b)
		got := uint8(more)
		for rest := b; len(rest) > 0; rest = rest[min(len(rest), int(size)+1):] {
			got = pieces.Read(rest[:min(len(rest), int(size)+1)])
		}
		if got != want || whole.Name() != pieces.Name() {
			t.Fatalf("%s %q as a whole, %s %q in pieces", ipc.FoundText(want), whole.Name(), ipc.FoundText(got), pieces.Name())
		}
		if (want == ipc.FoundName) != (whole.Name() != "") || len(whole.msg.buf) > maxHello || whole.total > ipc.MaxStaged {
			t.Fatalf("%s, %q, %d bytes", ipc.FoundText(want), whole.Name(), whole.total)
		}
		if want == ipc.FoundName {
			checkName(t, whole.Name(), unpack(b))
		}
	})
}

// unpack is the handshake message in records, read plainly.
func unpack(b []byte) (msg []byte) {
	for len(b) >= 5 && (len(msg) < 4 || len(msg) < 4+uint24(msg[1:])) {
		n := min(int(binary.BigEndian.Uint16(b[3:])), len(b)-5)
		msg = append(msg, b[5:5+n]...)
		b = b[5+n:]
	}
	return msg
}

// checkName looks for a name in a hello in another way: as the bytes that an extension
// with it would have.
func checkName(t *testing.T, name string, msg []byte) {
	t.Helper()
	if len(name) > MaxName {
		t.Fatalf("a name of %d bytes", len(name))
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			t.Fatalf("name %q", name)
		}
	}
	if !bytes.Contains(bytes.ToLower(msg), bytes.ToLower(sni(name))) {
		t.Fatalf("name %q in %x", name, msg)
	}
}

// FuzzInitial: datagrams as they are, or the payloads of packets that are protected
// here. What has a name has it in its CRYPTO frames.
func FuzzInitial(f *testing.F) {
	msg := clientHelloOf(sni(someName))
	for _, version := range []uint32{version1, version2} {
		for _, d := range hellotest.Flight(version, msg, 1000) {
			fuzz.Add(f, d, uint8(0), uint8(0))
		}
		for _, d := range hellotest.Flight(version, msg, 60)[:1] {
			fuzz.Add(f, d, uint8(0), uint8(0))
		}
	}
	for _, payload := range [][]byte{
		hellotest.Crypto(0, msg), append(hellotest.Crypto(40, msg[40:]), hellotest.Crypto(0, msg[:50])...), {framePing, framePadding, frameACK, 0, 0, 1, 0, 0, 0, frameACKECN, 0, 0, 0, 0, 1, 1, 1},
		{frameCrypto, 0xc0, 0, 0, 0, 0, 0, 0, 1, 1, 1}, append(hellotest.Crypto(0, msg), hellotest.Crypto(3, []byte{1})...), {0x1c, 0}, hellotest.Crypto(20000, []byte{1}), {frameCrypto, 0, 9},
		append(hellotest.Crypto(0, msg), hellotest.Crypto(len(msg), []byte{1})...), hellotest.Crypto(0, []byte{2}), hellotest.Crypto(0, []byte{1, 0xff, 0, 0}),
	} {
		fuzz.Add(f, payload, uint8(1), uint8(0))
		fuzz.Add(f, payload, uint8(2), uint8(31))
	}
	for _, c := range oddFlights(f) {
		for _, d := range c.d[:min(len(c.d), 2)] {
			fuzz.Add(f, d, uint8(0), uint8(0))
		}
	}
	fuzz.Add(f, []byte{0x40, 1}, uint8(0), uint8(0))
	fuzz.Add(f, []byte{0xc0, 0xff, 0, 0, 29, 0, 0, 0}, uint8(0), uint8(0))
	fuzz.Add(f, []byte{0xc0, 0, 0, 0, 0, 0, 0, 0}, uint8(0), uint8(0))
	fuzz.Add(f, []byte{0xf0, 0, 0, 0, 1, 0, 0, 0}, uint8(0), uint8(0))
	fuzz.Add(f, []byte{0xc0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2}, uint8(0), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, how, cut uint8) {
		var q QUIC
		var found uint8
		switch how % 3 {
		case 0:
			found = q.Read(bytes.Clone(b))
			if found == ipc.FoundName && how == 0 {
				return // sealed, so that only what is in it can tell
			}
		default: // in two packets, of one datagram or two
			if len(b) == 0 {
				return
			}
			at := int(cut) % len(b)
			p := hellotest.Packet{Version: version1, To: someID, NumberLen: 1 + int(cut)%4, Payload: hellotest.Pad(b[:at], 20)}
			if how%3 == 2 {
				p.Version = version2
			}
			d := p.Seal()
			p.Number, p.Payload = 1, hellotest.Pad(bytes.Clone(b[at:]), 20)
			if second := p.Seal(); cut&1 == 0 {
				d = append(d, second...)
				found = q.Read(d)
			} else if found = q.Read(d); found == more {
				found = q.Read(second)
			}
		}
		if (found == ipc.FoundName) != (q.Name() != "") || len(q.msg.buf) > maxHello {
			t.Fatalf("%s, %q", ipc.FoundText(found), q.Name())
		}
		if found == ipc.FoundName {
			checkName(t, q.Name(), q.msg.buf)
		}
	})
}
