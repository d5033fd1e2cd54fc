// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"crypto/tls"
	"math/rand/v2"
	"slices"
	"testing"

	"aldente/ipc"
	"aldente/names/hello/hellotest"
)

// vectorHello is the CRYPTO frame of RFC 9001 appendix A.2 and RFC 9369 appendix A.2.
const vectorHello = "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868" +
	"04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578" +
	"616d706c652e636f6dff01000100000a00080006001d00170018001000070005" +
	"04616c706e000500050100000000003300260024001d00209370b2c9caa47fba" +
	"baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400" +
	"0d0010000e0403050306030203080408050806002d00020101001c0002400100" +
	"3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000" +
	"75300901100f088394c8f03e51570806048000ffff"

// TestVectors: the packets of the RFCs are made, byte for byte at both ends, and read.
// The last bytes depend on all before them.
func TestVectors(t *testing.T) {
	for _, c := range []struct {
		version     uint32
		first, last string
	}{
		{version1, "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11",
			"7e78bfe706ca4cf5e9c5453e9f7cfd2b8b4c8d169a44e55c88d4a9a7f9474241e221af44860018ab0856972e194cd934"},
		{version2, "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485",
			"9a37ddec600545473cfb5a05e08d0b209973b2172b4d21fb69745a262ccde96ba18b2faa745b6fe189cf772a9f84cbfc"},
	} {
		p := hellotest.Packet{Version: c.version, To: unhex(t, "8394c8f03e515708"), Number: 2, NumberLen: 4, Payload: hellotest.Pad(unhex(t, vectorHello), 1162)}
		b := p.Seal()
		if first, last := unhex(t, c.first), unhex(t, c.last); len(b) != 1200 || !bytes.HasPrefix(b, first) || !bytes.HasSuffix(b, last) {
			t.Errorf("version %x: %d bytes\n%x", c.version, len(b), b)
		}
		var q QUIC
		if found := q.Read(b); found != ipc.FoundName || q.Name() != "example.com" {
			t.Errorf("version %x: %s, %q", c.version, ipc.FoundText(found), q.Name())
		}
	}
}

// TestFlights: a hello in datagrams of any size, frames in any order and more than once,
// with other frames and packets between, in both versions.
func TestFlights(t *testing.T) {
	quicHello := goHello(t, &tls.Config{ServerName: someName, MinVersion: tls.VersionTLS13, NextProtos: []string{"h3"}})[5:]
	long := clientHelloOf(ext(21, make([]byte, 8000)), sni(someName))
	for _, version := range []uint32{version1, version2} {
		for _, msg := range [][]byte{quicHello, long} {
			for each := 300; each <= 1100; each += 97 {
				all := hellotest.Flight(version, msg, each)
				for range 3 {
					rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
					var q QUIC
					for i, d := range all {
						found := q.Read(bytes.Clone(d))
						if last := i == len(all)-1; last != (found == ipc.FoundName) || !last && found != more {
							t.Fatalf("version %x, %d bytes each, datagram %d of %d: %s", version, each, i, len(all), ipc.FoundText(found))
						}
					}
					if q.Name() != someName {
						t.Fatalf("name %q", q.Name())
					}
				}
			}
			// As browsers do: pieces of a few bytes in any order, with PING, ACK and PADDING between.
			frames := [][]byte{{framePing}, {framePadding, framePadding}, {frameACK, 0, 0, 1, 0, 0, 0}, {frameACKECN, 0, 0, 0, 0, 1, 2, 3}}
			for at := 0; at < len(msg); {
				n := min(1+rand.IntN(300), len(msg)-at)
				frames = append(frames, hellotest.Crypto(at, msg[at:at+n]))
				if at > 50 && rand.IntN(4) == 0 { // some of it again
					frames = append(frames, hellotest.Crypto(at-50, msg[at-50:at+n]))
				}
				at += n
			}
			rand.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
			var all [][]byte
			var payload []byte
			for i, f := range frames {
				payload = append(payload, f...)
				if len(payload) > 900 || i == len(frames)-1 {
					p := hellotest.Packet{Version: version, To: someID, Token: []byte("token"), Number: uint64(300 + len(all)), NumberLen: 2, Payload: hellotest.Pad(payload, 1162)}
					all, payload = append(all, p.Seal()), nil
				}
			}
			var q QUIC
			if found := readAll(&q, all); found != ipc.FoundName || q.Name() != someName {
				t.Fatalf("version %x, frames in disorder: %s, %q", version, ipc.FoundText(found), q.Name())
			}
		}
	}
}

// TestCoalesced: packets in one datagram, initial ones and others that are passed over.
func TestCoalesced(t *testing.T) {
	msg := clientHelloOf(sni(someName))
	one := hellotest.Packet{Version: version1, To: someID, Number: 0, NumberLen: 1, Payload: hellotest.Pad(hellotest.Crypto(50, msg[50:]), 100)}
	two := hellotest.Packet{Version: version1, To: someID, Number: 1, NumberLen: 3, Payload: hellotest.Pad(hellotest.Crypto(0, msg[:50]), 100)}
	early := hellotest.Packet{Version: version1, To: someID, Number: 0, NumberLen: 1, Payload: make([]byte, 50), Type: hellotest.ZeroRTT}
	a, b, e := one.Seal(), two.Seal(), early.Seal()
	for name, d := range map[string][][]byte{
		"both in one":            {slices.Concat(a, b)},
		"early data between":     {slices.Concat(a, e, b)},
		"early data behind":      {slices.Concat(a, e), b},
		"a short header behind":  {slices.Concat(a, []byte{0x40, 1, 2, 3}), b},
		"zeros behind":           {append(bytes.Clone(a), make([]byte, 100)...), b},
		"early data on its own":  {a, e, b},
		"the same twice":         {a, a, b},
		"the second before that": {b, a},
	} {
		var q QUIC
		if found := readAll(&q, d); found != ipc.FoundName || q.Name() != someName {
			t.Errorf("%s: %s, %q", name, ipc.FoundText(found), q.Name())
		}
	}
}

// TestNumbers: packet numbers that were cut short are known again, RFC 9000 appendix A.3.
func TestNumbers(t *testing.T) {
	q := QUIC{next: 0xa82f30eb}
	if n := q.number(0x9b32, 2); n != 0xa82f9b32 {
		t.Errorf("%x", n)
	}
	for _, next := range []uint64{0, 1, 127, 128, 200, 255, 256, 1 << 20, maxNumber - 3} {
		for size := 1; size <= 4; size++ {
			window := uint64(1) << (8 * size)
			for _, n := range []uint64{next, next + 1, next + window/4, next - min(next, window/4)} {
				q := QUIC{next: next}
				if n > maxNumber {
					continue
				}
				if got := q.number(n&(window-1), size); got != n {
					t.Errorf("next %d, %d bytes: %d, not %d", next, size, got, n)
				}
			}
		}
	}
}

// oddFlight is what a flow of datagrams may begin with.
type oddFlight struct {
	d    [][]byte
	want uint8
}

// oddFlights are what is no first flight, or one with which two readers could mean two things.
func oddFlights(t failer) map[string]oddFlight {
	msg := clientHelloOf(sni(someName))
	half := len(msg) / 2
	seal := func(p hellotest.Packet) []byte {
		if p.Version == 0 {
			p.Version = version1
		}
		if p.To == nil {
			p.To = someID
		}
		p.NumberLen = max(p.NumberLen, 1)
		return p.Seal()
	}
	crypto := func(at int, b []byte) []byte { return hellotest.Pad(hellotest.Crypto(at, b), 1100) }
	first := seal(hellotest.Packet{Payload: crypto(0, msg[:half])})
	broken := bytes.Clone(first)
	broken[len(broken)-1] ^= 1
	otherVersion := bytes.Clone(first)
	copy(otherVersion[1:], []byte{0xff, 0, 0, 29})
	greased := bytes.Clone(first)
	copy(greased[1:], []byte{0x1a, 0x2a, 0x3a, 0x4a})
	negotiation := []byte{0x80, 0, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 1}
	idTooLong := append([]byte{0xc0, 0, 0, 0, 1, 21}, make([]byte, 1200)...)
	var many [][]byte
	for i := range ipc.MaxStagedDatagrams + 1 {
		many = append(many, seal(hellotest.Packet{Number: uint64(i), Payload: hellotest.Pad([]byte{framePing}, 1100)}))
	}
	return map[string]oddFlight{
		"no end in sight":                {[][]byte{first}, more},
		"empty":                          {[][]byte{{}}, ipc.FoundNotHello},
		"a short header":                 {[][]byte{{0x40, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, ipc.FoundNotHello},
		"a question for a name":          {[][]byte{unhex(t, "1a2b01000001000000000000037777770765 78616d706c65036f72670000010001"[:32])}, ipc.FoundNotHello},
		"version 29 of the drafts":       {[][]byte{otherVersion}, ipc.FoundVersion},
		"a version to be negotiated":     {[][]byte{greased}, ipc.FoundVersion},
		"version negotiation":            {[][]byte{negotiation}, ipc.FoundNotHello},
		"a retry":                        {[][]byte{append([]byte{0xf0, 0, 0, 0, 1, 0, 0}, make([]byte, 50)...)}, ipc.FoundNotHello},
		"a handshake packet":             {[][]byte{seal(hellotest.Packet{Type: hellotest.Handshake, Payload: make([]byte, 50)})}, ipc.FoundNotHello},
		"early data first":               {[][]byte{seal(hellotest.Packet{Type: hellotest.ZeroRTT, Payload: make([]byte, 50)})}, ipc.FoundNotHello},
		"a changed byte":                 {[][]byte{broken}, ipc.FoundNotHello},
		"cut short":                      {[][]byte{first[:len(first)-1]}, ipc.FoundNotHello},
		"cut in its header":              {[][]byte{first[:12]}, ipc.FoundNotHello},
		"too short for a sample":         {[][]byte{{0xc0, 0, 0, 0, 1, 0, 0, 0, 5, 1, 2, 3, 4, 5}}, ipc.FoundNotHello},
		"an identifier that is too long": {[][]byte{idTooLong}, ipc.FoundNotHello},
		"another connection":             {[][]byte{first, seal(hellotest.Packet{To: []byte{8, 7, 6, 5, 4, 3, 2, 1}, Payload: crypto(half, msg[half:])})}, ipc.FoundNotHello},
		"another connection, coalesced":  {[][]byte{slices.Concat(first, seal(hellotest.Packet{To: []byte{8, 7, 6, 5, 4, 3, 2, 1}, Payload: crypto(0, msg)}))}, ipc.FoundNotHello},
		"another version later":          {[][]byte{first, seal(hellotest.Packet{Version: version2, Payload: crypto(half, msg[half:])})}, ipc.FoundNotHello},
		"another name over the first":    {[][]byte{first, seal(hellotest.Packet{Number: 1, Payload: crypto(half-1, append([]byte{msg[half-1] ^ 1}, msg[half:]...))})}, ipc.FoundNotHello},
		"two messages":                   {[][]byte{seal(hellotest.Packet{Payload: crypto(0, slices.Concat(msg, msg))})}, ipc.FoundNotHello},
		"bytes far behind it":            {[][]byte{seal(hellotest.Packet{Payload: append(hellotest.Crypto(5000, []byte{1}), crypto(0, msg)...)})}, ipc.FoundNotHello},
		"beyond what may be":             {[][]byte{seal(hellotest.Packet{Payload: crypto(maxHello, []byte{1})})}, ipc.FoundTooLong},
		"an offset of 2^62":              {[][]byte{seal(hellotest.Packet{Payload: append([]byte{frameCrypto}, append(hellotest.Varint(1<<62-1), 1, 1)...)})}, ipc.FoundTooLong},
		"a frame that ends early":        {[][]byte{seal(hellotest.Packet{Payload: append(make([]byte, 100), frameCrypto, 0, 50, 1)})}, ipc.FoundNotHello},
		"the end of the connection":      {[][]byte{seal(hellotest.Packet{Payload: append(make([]byte, 100), 0x1c, 0, 0, 0)})}, ipc.FoundNotHello},
		"a frame of another packet":      {[][]byte{seal(hellotest.Packet{Payload: append(make([]byte, 100), 0x08, 0, 1, 1)})}, ipc.FoundNotHello},
		"an ACK without an end":          {[][]byte{seal(hellotest.Packet{Payload: append(make([]byte, 100), frameACK, 0, 0, 0x3f, 0, 0)})}, ipc.FoundNotHello},
		"nothing in it":                  {[][]byte{seal(hellotest.Packet{NumberLen: 4})}, ipc.FoundNotHello},
		"another message":                {[][]byte{seal(hellotest.Packet{Payload: crypto(0, append([]byte{2}, msg[1:]...))})}, ipc.FoundNotHello},
		"no name":                        {[][]byte{seal(hellotest.Packet{Payload: crypto(0, clientHelloOf())})}, ipc.FoundNoName},
		"an address":                     {[][]byte{seal(hellotest.Packet{Payload: crypto(0, clientHelloOf(sni("192.0.2.1")))})}, ipc.FoundBadName},
		"too long":                       {[][]byte{seal(hellotest.Packet{Payload: crypto(0, message24(clientHello, make([]byte, maxHello))[:100])})}, ipc.FoundTooLong},
		"many datagrams":                 {many, ipc.FoundTooLong},
	}
}

// TestRefusedFlights: each of them is found to be what it is.
func TestRefusedFlights(t *testing.T) {
	for name, c := range oddFlights(t) {
		var q QUIC
		if found := readAll(&q, c.d); found != c.want || q.Name() != "" {
			t.Errorf("%s: %s, not %s, name %q", name, ipc.FoundText(found), ipc.FoundText(c.want), q.Name())
		}
	}
	// Whatever is cut off, nothing is found that was not sent.
	whole := hellotest.Flight(version1, clientHelloOf(sni(someName)), 1000)[0]
	for at := range whole {
		var q QUIC
		if found := q.Read(bytes.Clone(whole[:at])); found == ipc.FoundName {
			t.Fatalf("a name in %d of %d bytes", at, len(whole))
		}
	}
}

// TestReservedBits: bits of an initial packet that have to be zero.
func TestReservedBits(t *testing.T) {
	for reserved := byte(0); reserved <= 0x0c; reserved += 4 {
		p := hellotest.Packet{Version: version1, To: someID, Reserved: reserved, Payload: hellotest.Pad(hellotest.Crypto(0, clientHelloOf(sni(someName))), 1100)}
		var q QUIC
		if found := q.Read(p.Seal()); (found == ipc.FoundName) != (reserved == 0) || reserved != 0 && found != ipc.FoundNotHello {
			t.Errorf("%x: %s", reserved, ipc.FoundText(found))
		}
	}
}
