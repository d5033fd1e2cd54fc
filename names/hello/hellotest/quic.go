// SPDX-License-Identifier: Apache-2.0

// Package hellotest makes first flights of clients, for tests: as RFC 8446, 9001 and
// 9369 have them, by means of its own.
package hellotest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"net"
)

// Versions of QUIC.
const (
	Version1 = 1
	Version2 = 0x6b3343cf
)

// Types of packets with a long header, as version 1 counts them.
const (
	Initial = iota
	ZeroRTT
	Handshake
	Retry
)

// Packet is one of a client's with a long header.
type Packet struct {
	Version   uint32 // Version1 or Version2
	Type      byte   // Initial, or another, which is not protected: nobody here could read it
	To        []byte // connection identifier of the server
	From      []byte // of the client
	Token     []byte // of an earlier connection
	Number    uint64 // of the packet
	NumberLen int    // bytes of Number that are sent
	Reserved  byte   // bits 0x0c of the first byte
	Payload   []byte // frames
}

// tagLen is the length of AEAD's tag.
const tagLen = 16

// Seal writes the packet.
func (p *Packet) Seal() []byte {
	kind := p.Type
	if p.Version == Version2 {
		kind = (kind + 1) & 3
	}
	size := max(p.NumberLen, 1)
	b := []byte{0xc0 | kind<<4 | p.Reserved | byte(size-1)}
	b = binary.BigEndian.AppendUint32(b, p.Version)
	b = append(append(b, byte(len(p.To))), p.To...)
	b = append(append(b, byte(len(p.From))), p.From...)
	if p.Type == Initial {
		b = append(append(b, Varint(uint64(len(p.Token)))...), p.Token...)
	}
	length := size + len(p.Payload) + tagLen
	b = append(b, byte(length>>8)|0x40, byte(length))
	at := len(b)
	for i := size - 1; i >= 0; i-- {
		b = append(b, byte(p.Number>>(8*i)))
	}
	if p.Type != Initial {
		return append(b, make([]byte, len(p.Payload)+tagLen)...)
	}
	key, iv, hp := keys(p.Version, p.To)
	for i := range 8 {
		iv[4+i] ^= byte(p.Number >> (56 - 8*i))
	}
	gcm, err := cipher.NewGCM(key)
	if err != nil {
		panic(err) // AES has the right block
	}
	b = gcm.Seal(b, iv, p.Payload, b)
	var mask [16]byte
	hp.Encrypt(mask[:], b[at+4:at+20])
	b[0] ^= mask[0] & 0x0f
	for i := range size {
		b[at+i] ^= mask[1+i]
	}
	return b
}

func keys(version uint32, to []byte) (key cipher.Block, iv []byte, hp cipher.Block) {
	salt, prefix := "\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a", "quic "
	if version == Version2 {
		salt, prefix = "\x0d\xed\xe3\xde\xf7\x00\xa6\xdb\x81\x93\x81\xbe\x6e\x26\x9d\xcb\xf9\xbd\x2e\xd9", "quicv2 "
	}
	client := expand(sum([]byte(salt), to), "client in", 32)
	block := func(label string) cipher.Block {
		c, err := aes.NewCipher(expand(client, prefix+label, 16))
		if err != nil {
			panic(err) // 16 bytes are a key
		}
		return c
	}
	return block("key"), expand(client, prefix+"iv", 12), block("hp")
}

// sum is HMAC with SHA-256.
func sum(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(bytes.Join(parts, nil))
	return h.Sum(nil)
}

// expand is HKDF-Expand-Label of up to one block, RFC 8446 section 7.1, RFC 5869 section 2.3.
func expand(secret []byte, label string, size int) []byte {
	return sum(secret, []byte{0, byte(size), byte(6 + len(label))}, []byte("tls13 "+label), []byte{0, 1})[:size]
}

// Varint writes an integer of QUIC.
func Varint(v uint64) []byte {
	switch {
	case v < 1<<6:
		return []byte{byte(v)}
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(nil, uint16(v)|1<<14)
	case v < 1<<30:
		return binary.BigEndian.AppendUint32(nil, uint32(v)|1<<31)
	}
	return binary.BigEndian.AppendUint64(nil, v|3<<62)
}

// Crypto is a CRYPTO frame.
func Crypto(offset int, data []byte) []byte {
	b := append([]byte{6}, Varint(uint64(offset))...)
	return append(append(b, Varint(uint64(len(data)))...), data...)
}

// Pad fills a payload with PADDING up to a size.
func Pad(b []byte, size int) []byte {
	if len(b) < size {
		b = append(b[:len(b):len(b)], make([]byte, size-len(b))...)
	}
	return b
}

// Flight is a hello as a client of QUIC sends it, in datagrams of 1,200 bytes with so many
// bytes of it each.
func Flight(version uint32, hello []byte, each int) (all [][]byte) {
	for at := 0; at < len(hello); at += each {
		p := Packet{Version: version, To: []byte{1, 2, 3, 4, 5, 6, 7, 8}, From: []byte{9}, Number: uint64(len(all)),
			Payload: Pad(Crypto(at, hello[at:min(at+each, len(hello))]), 1162)}
		all = append(all, p.Seal())
	}
	return all
}

// Hello is the first flight of Go's own client of TLS, with the header of its record.
func Hello(c *tls.Config) []byte {
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(theirs, c).Handshake()
		theirs.Close()
	}()
	b := make([]byte, 16<<10)
	n, _ := ours.Read(b)
	ours.Close()
	return b[:n]
}
