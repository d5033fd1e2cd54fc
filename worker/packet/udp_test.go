// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"testing"
)

func TestUDPDecode(t *testing.T) {
	head := func(length uint16) []byte {
		return []byte{1, 2, 3, 4, byte(length >> 8), byte(length), 5, 6, 'a', 'b', 'c'}
	}
	for _, c := range []struct {
		name    string
		l4      []byte
		want    error
		payload string
		gso     string
	}{
		{"whole", head(11), nil, "abc", "abc"},
		{"bytes behind it", head(9), nil, "a", "abc"},
		{"empty", head(8), nil, "", "abc"},
		{"length below the header", head(7), ErrHeaderLength, "", "abc"},
		{"length 0", head(0), ErrHeaderLength, "", "abc"},
		{"length past the end", head(12), ErrTruncated, "", "abc"},
		{"length 65535", head(65535), ErrTruncated, "", "abc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var u UDP
			if err := u.Decode(c.l4); err != c.want {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want == nil && (u.SrcPort != 0x0102 || u.DstPort != 0x0304 || u.Checksum != 0x0506 || string(u.Payload) != c.payload) {
				t.Errorf("%+v", u)
			}
			u = UDP{}
			if err := u.DecodeGSO(c.l4); err != nil {
				t.Fatal(err)
			}
			if u.SrcPort != 0x0102 || u.DstPort != 0x0304 || u.Checksum != 0x0506 || string(u.Payload) != c.gso {
				t.Errorf("super-frame: %+v", u)
			}
		})
	}
	for n := range udpLen {
		var u UDP
		if u.Decode(make([]byte, n)) != ErrTruncated || u.DecodeGSO(make([]byte, n)) != ErrTruncated {
			t.Errorf("%d bytes accepted", n)
		}
	}
}

func TestEchoDecode(t *testing.T) {
	var e Echo
	if err := e.Decode([]byte{8, 1, 0, 0, 1, 2, 3, 4, 'x'}); err != nil {
		t.Fatal(err)
	}
	if e.Type != 8 || e.Code != 1 || e.ID != 0x0102 || e.Seq != 0x0304 || string(e.Payload) != "x" {
		t.Errorf("%+v", e)
	}
	for n := range icmpLen {
		if e.Decode(make([]byte, n)) != ErrTruncated {
			t.Errorf("%d bytes accepted", n)
		}
	}
}

func TestARPDecode(t *testing.T) {
	good := make([]byte, 60)
	PutARP(good, ARPRequest, ends4.SrcMAC, Broadcast, ends4.SrcMAC, [4]byte{10, 0, 2, 15}, MAC{}, [4]byte{10, 0, 2, 2})
	var a ARP
	if err := a.Decode(good[EthernetLen:]); err != nil {
		t.Fatal(err)
	}
	for n := range arpLen {
		if a.Decode(good[EthernetLen:EthernetLen+n]) != ErrTruncated {
			t.Errorf("%d bytes accepted", n)
		}
	}
	for i := range 6 {
		b := bytes.Clone(good[EthernetLen:])
		b[i] ^= 1
		if a.Decode(b) != ErrARP {
			t.Errorf("byte %d of the head changed unnoticed", i)
		}
	}
}
