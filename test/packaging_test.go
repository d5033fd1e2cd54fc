// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestPackagingSyntax compiles the AppArmor profiles and the SELinux module where
// the tools are installed (Debian: apparmor, selinux-policy-dev).
func TestPackagingSyntax(t *testing.T) {
	t.Run("AppArmor", func(t *testing.T) {
		parser, err := exec.LookPath("apparmor_parser")
		if err != nil {
			parser = "/usr/sbin/apparmor_parser"
		}
		if _, err := os.Stat(parser); err != nil {
			t.Skip("needs apparmor_parser")
		}
		for _, name := range []string{"aldente", "aldente-worker"} {
			if out, err := exec.Command(parser, "-Q", "-K", filepath.Join("..", "packaging", "apparmor", name)).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
	})
	t.Run("SELinux", func(t *testing.T) {
		const rules = "/usr/share/selinux/devel/Makefile"
		if _, err := os.Stat(rules); err != nil {
			t.Skip("needs the reference policy's development files")
		}
		dir := t.TempDir()
		for _, suffix := range []string{"te", "fc", "if"} {
			b, err := os.ReadFile(filepath.Join("..", "packaging", "selinux", "aldente."+suffix))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "aldente."+suffix), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("make", "-f", rules, "aldente.pp")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
