// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseSeed reads a file of testdata/fuzz, in the format of go test.
func ParseSeed(file []byte) (args []any, err error) {
	lines := strings.Split(strings.TrimSpace(string(file)), "\n")
	if lines[0] != "go test fuzz v1" {
		return nil, fmt.Errorf("no seed of go test: %q", lines[0])
	}
	for _, line := range lines[1:] {
		kind, value, ok := strings.Cut(strings.TrimSuffix(line, ")"), "(")
		if !ok {
			return nil, fmt.Errorf("%q is no argument", line)
		}
		arg, err := parseArg(kind, value)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		args = append(args, arg)
	}
	return args, nil
}

func parseArg(kind, value string) (any, error) {
	switch kind {
	case "[]byte":
		s, err := strconv.Unquote(value)
		return []byte(s), err
	case "string":
		return strconv.Unquote(value)
	case "byte", "uint8":
		if strings.HasPrefix(value, "'") {
			c, _, _, err := strconv.UnquoteChar(value[1:len(value)-1], '\'')
			return uint8(c), err
		}
		n, err := strconv.ParseUint(value, 0, 8)
		return uint8(n), err
	case "uint16":
		n, err := strconv.ParseUint(value, 0, 16)
		return uint16(n), err
	case "uint32":
		n, err := strconv.ParseUint(value, 0, 32)
		return uint32(n), err
	}
	return nil, fmt.Errorf("an argument of type %s is not foreseen", kind)
}
