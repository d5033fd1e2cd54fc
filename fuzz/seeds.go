// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Captures holds what translators have recorded of real clients, one file for
// each. capture.sh makes them anew.
//
//go:embed corpus/*.pcap
var Captures embed.FS

// Dictionaries are in libFuzzer's format.
//
//go:embed dict/*.dict
var Dictionaries embed.FS

// SeedDir names the variable that has Add write each seed to a file as well, for
// libFuzzer, in a folder of that name, in one for each target.
const SeedDir = "ALDENTE_FUZZ_SEEDS"

// F is what is used of testing.F. OSS-Fuzz puts a type of its own in its place.
type F interface {
	Add(args ...any)   // a seed
	Name() string      // of the target
	Fatal(args ...any) // ends it: the seeds are at fault
}

// Add adds a seed.
func Add(f F, args ...any) {
	f.Add(args...)
	dir := os.Getenv(SeedDir)
	if dir == "" {
		return
	}
	b, err := LibFuzzer(args)
	if err == nil {
		err = WriteSeed(filepath.Join(dir, f.Name()), b)
	}
	if err != nil {
		f.Fatal(err)
	}
}

// WriteSeed writes a file that is called what it holds.
func WriteSeed(dir string, b []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(b))[:16]), b, 0o644)
}

// LibFuzzer encodes arguments as OSS-Fuzz's builder of native targets decodes
// them: numbers first, big-endian, then a byte of weight for the one argument of
// variable length, then that. Targets have no more than one for this reason.
func LibFuzzer(args []any) ([]byte, error) {
	var numbers, rest []byte
	dynamic := 0
	for _, a := range args {
		switch v := a.(type) {
		case []byte:
			rest = v
			dynamic++
		case string:
			rest = []byte(v)
			dynamic++
		case uint8:
			numbers = append(numbers, v)
		case uint16:
			numbers = binary.BigEndian.AppendUint16(numbers, v)
		case uint32:
			numbers = binary.BigEndian.AppendUint32(numbers, v)
		default:
			return nil, fmt.Errorf("an argument of type %T is not foreseen", a)
		}
	}
	if dynamic != 1 {
		return nil, fmt.Errorf("%d arguments of variable length", dynamic)
	}
	return append(append(numbers, 1), rest...), nil
}

// Captured returns the frames of the captures whose names start with one of the
// prefixes, all if there is none.
func Captured(prefixes ...string) [][]byte {
	files, err := Captures.ReadDir("corpus")
	if err != nil {
		panic(err) // it is embedded
	}
	var frames [][]byte
	for _, file := range files {
		if !hasPrefix(file.Name(), prefixes) {
			continue
		}
		b, err := Captures.ReadFile("corpus/" + file.Name())
		if err != nil {
			panic(err)
		}
		frames = append(frames, Records(b)...)
	}
	return frames
}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return len(prefixes) == 0
}

// Records returns the frames of a pcap file of either byte order.
func Records(b []byte) (frames [][]byte) {
	if len(b) < 24 {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if bytes.HasPrefix(b, []byte{0xa1, 0xb2, 0xc3, 0xd4}) {
		order = binary.BigEndian
	}
	for b = b[24:]; len(b) >= 16; {
		n := int(order.Uint32(b[8:]))
		if n > len(b)-16 {
			return frames
		}
		frames = append(frames, b[16:16+n:16+n])
		b = b[16+n:]
	}
	return frames
}

// Datagram returns the payload of a UDP datagram to or from the port in a
// captured frame, or nil.
func Datagram(frame []byte, port uint16) []byte {
	l, ok := locate(frame)
	if !ok || l.fragment || l.proto != protoUDP || l.end-l.upper < 8 {
		return nil
	}
	u := frame[l.upper:l.end]
	if binary.BigEndian.Uint16(u) != port && binary.BigEndian.Uint16(u[2:]) != port {
		return nil
	}
	return u[8:]
}

// Segment returns the upper layer of a captured frame of the protocol, or nil.
func Segment(frame []byte, proto uint8) []byte {
	l, ok := locate(frame)
	if !ok || l.fragment || l.proto != proto {
		return nil
	}
	return frame[l.upper:l.end]
}

// Words returns the entries of a dictionary.
func Words(name string) []string {
	b, err := Dictionaries.ReadFile("dict/" + name + ".dict")
	if err != nil {
		panic(err)
	}
	words, err := ParseDictionary(b)
	if err != nil {
		panic(err)
	}
	return words
}
