// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies keeps out of the worker what its start-up would pay for and
// its sandbox forbids.
func TestDependencies(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	never := map[string]bool{"net": true, "os/exec": true, "log/slog": true, "net/http": true, "crypto/tls": true,
		"plugin": true, "runtime/cgo": true, "aldente/policy/calls": true}
	for pkg := range strings.FieldsSeq(string(out)) {
		if never[pkg] || strings.HasPrefix(pkg, "aldente/broker") {
			t.Errorf("the worker depends on %s", pkg)
		}
	}
}
