// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
)

// Versions of QUIC: RFC 9000 section 15, RFC 9369 section 3.1.
const (
	version1 = 0x00000001
	version2 = 0x6b3343cf
)

// Salts of initial secrets: RFC 9001 section 5.2, RFC 9369 section 3.3.1.
var (
	salt1 = []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a}
	salt2 = []byte{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9}
)

// keys are those by which a client's initial packets are protected: everybody can
// derive them, RFC 9001 section 5.2.
type keys struct {
	aead cipher.AEAD
	iv   []byte
	hp   cipher.Block
}

// initialKeys derives them from the connection identifier that the client has chosen
// for the server.
func initialKeys(version uint32, destination []byte) (k keys, err error) {
	salt, prefix := salt1, "quic "
	if version == version2 {
		salt, prefix = salt2, "quicv2 "
	}
	initial, err := hkdf.Extract(sha256.New, destination, salt)
	if err != nil {
		return k, err
	}
	client, err := expand(initial, "client in", sha256.Size)
	if err != nil {
		return k, err
	}
	var secrets [3][]byte
	for i, part := range []struct {
		label string
		size  int
	}{{"key", 16}, {"iv", 12}, {"hp", 16}} {
		if secrets[i], err = expand(client, prefix+part.label, part.size); err != nil {
			return k, err
		}
	}
	block, err := aes.NewCipher(secrets[0])
	if err != nil {
		return k, err
	}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return k, err
	}
	k.iv = secrets[1]
	k.hp, err = aes.NewCipher(secrets[2])
	return k, err
}

// expand is HKDF-Expand-Label without context, RFC 8446 section 7.1.
func expand(secret []byte, label string, size int) ([]byte, error) {
	info := make([]byte, 0, 32)
	info = binary.BigEndian.AppendUint16(info, uint16(size))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(sha256.New, secret, string(info), size)
}

// nonce is that of a packet, RFC 9001 section 5.3.
func (k *keys) nonce(number uint64) (n [12]byte) {
	copy(n[:], k.iv)
	for i := range 8 {
		n[4+i] ^= byte(number >> (56 - 8*i))
	}
	return n
}
