// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"

	"aldente/names/hello/hellotest"
)

// failer is what is used of testing.TB: OSS-Fuzz has another type in its place.
type failer interface{ Fatal(args ...any) }

// record puts a handshake message into records of up to size bytes.
func record(msg []byte, size int) (b []byte) {
	for len(msg) > 0 {
		n := min(size, len(msg))
		b = append(b, recordHandshake, 3, 1)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		b = append(b, msg[:n]...)
		msg = msg[n:]
	}
	return b
}

// ext is an extension of a hello.
func ext(kind uint16, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// sni is a server_name extension with these names, each of type 0.
func sni(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, 0)
		list = binary.BigEndian.AppendUint16(list, uint16(len(n)))
		list = append(list, n...)
	}
	return ext(0, append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...))
}

// hello is a client hello with these extensions, with its header.
func clientHelloOf(extensions ...[]byte) []byte {
	b := []byte{3, 3}
	b = append(b, make([]byte, 32)...)
	b = append(b, 32)
	b = append(b, bytes.Repeat([]byte{7}, 32)...)
	b = append(b, 0, 2, 0x13, 0x01, 1, 0)
	all := bytes.Join(extensions, nil)
	b = binary.BigEndian.AppendUint16(b, uint16(len(all)))
	b = append(b, all...)
	return message24(clientHello, b)
}

func message24(kind byte, body []byte) []byte {
	return append([]byte{kind, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// goHello is the first flight of Go's own client.
func goHello(t failer, c *tls.Config) []byte {
	b := hellotest.Hello(c)
	if len(b) == 0 {
		t.Fatal("no hello")
	}
	return b
}

// recorded are hellos of programs, see testdata.
func recorded(t failer) map[string][]byte {
	all := map[string][]byte{}
	files, err := filepath.Glob("testdata/*.bin")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if all[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func unhex(t failer, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var someID = []byte{1, 2, 3, 4, 5, 6, 7, 8}

func readAll(q *QUIC, datagrams [][]byte) (found uint8) {
	for _, d := range datagrams {
		found = q.Read(bytes.Clone(d))
	}
	return found
}
