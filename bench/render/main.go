// SPDX-License-Identifier: Apache-2.0

// Command render makes the tables and plots of docs/performance.md anew from the
// results in docs/performance, which bench and bench-stream write with -csv. It is
// started in the repository's root, by `make performance`.
package main

import (
	"fmt"
	"os"

	"aldente/bench/report"
)

func main() {
	if err := report.Render("docs/performance.md", "docs/performance"); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}
