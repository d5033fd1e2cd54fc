// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMutantsApply: each deliberate break of mutants.txt still changes the code
// that it names. Whether tests notice it is for "make mutate", which takes long.
func TestMutantsApply(t *testing.T) {
	list, err := os.ReadFile("mutants.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(list)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, "@")
		if len(f) != 4 {
			t.Errorf("%q has %d fields, not file, function, edit, who notices", line, len(f))
			continue
		}
		n++
		code, err := os.ReadFile(filepath.Join("../worker", f[0]))
		if os.IsNotExist(err) {
			code, err = os.ReadFile(filepath.Join("..", f[0]))
		}
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		head := "/^func.* *" + f[1] + "(.*"
		sed := exec.Command("sed", head+"}$/ "+f[2]+";"+head+"{$/,/^}/ "+f[2])
		sed.Stdin = bytes.NewReader(code)
		if out, err := sed.Output(); err != nil || bytes.Equal(out, code) {
			t.Errorf("does not apply: %s (%v)", line, err)
		}
	}
	if n < 120 {
		t.Errorf("%d mutants", n)
	}
}
