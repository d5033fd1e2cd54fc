// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestKernelTables: docs/kernels.md says what the saved results say, and these tell of
// no fault that their run does not expect.
func TestKernelTables(t *testing.T) {
	text, err := Document("../..")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	if text != string(b) {
		t.Error("docs/kernels.md is not made of the results in docs/kernels: go run ./test/kernels/report")
	}
	runs, err := ReadAll("runs", "../../docs/kernels")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, r := range runs {
		if !r.Ran() {
			continue
		}
		ran++
		faults, err := r.Faults()
		if err != nil || len(faults) > 0 {
			t.Errorf("%s: %v\n\t%s", r.Name, err, strings.Join(faults, "\n\t"))
		}
		if len(r.Lines["smoke"]) < 10 || r.One("release") == "" {
			t.Errorf("%s: says next to nothing", r.Name)
		}
	}
	if ran == 0 {
		t.Error("no results")
	}
}

// TestFaults: what counts as one.
func TestFaults(t *testing.T) {
	const good = "release\t6.1\nself-test-user\tall layers are in force\nself-test-root\tworker: seccomp: in force\nsmoke\tuser: pasta: yes\n" +
		"test\tPASS: TestPing\ntests\ttest status 0\n"
	for _, tt := range []struct {
		more string
		want []string
	}{
		{"", nil},
		{"smoke\tuser: aldente: no: status 1: what\n", []string{"user: aldente: no: status 1: what"}},
		{"expect\taldente: .*what$\nsmoke\tuser: aldente: no: status 1: what\n", nil},
		{"expect\taldente\nsmoke\tuser: pasta: no: status 1: what\n", []string{"user: pasta: no: status 1: what"}},
		{"test\tFAIL: TestDig\n", []string{"FAIL: TestDig"}},
		{"test\tSKIP: TestDig\n", nil},
		{"tests\ttest status 2\n", []string{"tests: test status 2"}},
		{"self-test-root\tworker: landlock: missing (none)\n", []string{"root: self-test: worker: landlock: missing (none)"}},
		{"self-test-root\tworker: landlock: partly in force (ABI 2)\n", nil},
		{"self-test-user\tbroker: a worker is replaced, within 5.5s: FAILED: none\n", []string{"user: self-test: broker: a worker is replaced: FAILED: none"}},
		{"self-test-user\tcannot make user namespaces\n", []string{"user: self-test: cannot make user namespaces"}},
		{"kernel-log\taudit: type=1326\n", []string{"kernel: audit: type=1326"}},
		{"denied\taudit: apparmor\n", []string{"kernel: audit: apparmor"}},
	} {
		r, err := Read("r", strings.NewReader(good+tt.more))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r[0].Faults(); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: %v %v", tt.more, got, err)
		}
	}
	r, _ := Read("r", strings.NewReader("smoke\tuser: pasta: yes\n"))
	if got, _ := r[0].Faults(); len(got) != 2 {
		t.Errorf("without self-tests: %v", got)
	}
}

// TestWritten: what is written and read again is the same, but for what nobody keeps.
func TestWritten(t *testing.T) {
	var b strings.Builder
	r, err := Read("r", strings.NewReader("log\tnot kept\nrelease\t7\nself-test-user\tb\nself-test-user\ta, within 3ms\ncondition\tbare\nrelease\t8\nend\t3 s\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(r) != 2 || r[1].Name != "r-bare" || r[1].One("release") != "8" {
		t.Fatalf("%d runs", len(r))
	}
	if err := r[0].Write(&b); err != nil || !strings.HasSuffix(b.String(), "\nrelease\t7\nself-test-user\ta\nself-test-user\tb\n") || strings.Contains(b.String(), "3 s") {
		t.Errorf("%v %q", err, b.String())
	}
}
