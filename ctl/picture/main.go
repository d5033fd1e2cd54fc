// SPDX-License-Identifier: Apache-2.0

// Command picture makes SVG pictures of recorded output of terminal programs: of each
// NAME.ansi it is given, a NAME.svg beside it.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "Usage: picture NAME.ansi...")
		os.Exit(1)
	}
	for _, path := range os.Args[1:] {
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(strings.TrimSuffix(path, ".ansi")+".svg", []byte(svg(string(b))), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "picture:", err)
			os.Exit(1)
		}
	}
}
