// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// TestPackagingSyntax compiles the AppArmor profiles and the SELinux module, and makes
// the system user in a tree of its own, where the tools are installed (Debian:
// apparmor, selinux-policy-dev, systemd).
func TestPackagingSyntax(t *testing.T) {
	t.Run("AppArmor", func(t *testing.T) {
		parser, err := exec.LookPath("apparmor_parser")
		if err != nil {
			parser = "/usr/sbin/apparmor_parser"
		}
		if _, err := os.Stat(parser); err != nil {
			t.Skip("needs apparmor_parser")
		}
		for _, name := range []string{"aldente", "aldente-worker", "aldente-names", "aldente-libvirt", "aldente-userns"} {
			if _, err := os.Stat("/etc/apparmor.d/abi/4.0"); err != nil && name == "aldente-userns" {
				continue
			}
			if out, err := exec.Command(parser, "-Q", "-K", filepath.Join("..", "packaging", "apparmor", name)).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
	})
	t.Run("system user", func(t *testing.T) {
		if _, err := exec.LookPath("systemd-sysusers"); err != nil {
			t.Skip("needs systemd-sysusers")
		}
		b, err := os.ReadFile("../packaging/systemd/sysusers/aldente.conf")
		if err != nil {
			t.Fatal(err)
		}
		root := t.TempDir()
		rules := filepath.Join(root, "usr/lib/sysusers.d")
		if err := errors.Join(os.MkdirAll(rules, 0o755), os.Mkdir(filepath.Join(root, "etc"), 0o755),
			os.WriteFile(filepath.Join(rules, "aldente.conf"), b, 0o644)); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-sysusers", "--root="+root, "aldente.conf").CombinedOutput()
		users, _ := os.ReadFile(filepath.Join(root, "etc/passwd"))
		if err != nil || !strings.HasPrefix(string(users), "aldente:x:") || !strings.Contains(string(users), "nologin") {
			t.Errorf("%v\n%s%s", err, out, users)
		}
	})
	t.Run("units", func(t *testing.T) {
		if _, err := exec.LookPath("systemd-analyze"); err != nil {
			t.Skip("needs systemd-analyze")
		}
		units, err := filepath.Glob("../packaging/systemd/*/*.s*")
		if err != nil || len(units) < 5 {
			t.Fatal(units, err)
		}
		// Of copies, whose program is one that is there: the tool looks for it.
		dir := t.TempDir()
		for _, u := range units {
			text := strings.NewReplacer("ExecStart=@/usr/bin/aldente ", "ExecStart=@/bin/sh ", "ExecStart=/usr/bin/aldente ", "ExecStart=/bin/sh ").Replace(read(t, u))
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Base(filepath.Dir(u))), 0o755),
				os.WriteFile(filepath.Join(dir, filepath.Base(filepath.Dir(u)), filepath.Base(u)), []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		units, _ = filepath.Glob(dir + "/*/*")
		for _, u := range units {
			if out, err := exec.Command("systemd-analyze", "verify", "--man=no", u).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v\n%s", u, err, out)
			}
		}
	})
	t.Run("SELinux's files", func(t *testing.T) {
		// What has an expression in it counts less than the policy's own for all of /usr/bin.
		paths := regexp.MustCompile(`(?m)^/\S+`).FindAllString(read(t, "../packaging/selinux/aldente.fc"), -1)
		for _, p := range paths {
			if regexp.MustCompile(`[^a-z/-]`).MatchString(p) {
				t.Errorf("%s is an expression", p)
			}
		}
		for _, p := range []string{"/usr/bin/aldente", "/usr/local/bin/aldente", "/usr/libexec/aldente/aldente-worker", "/usr/local/libexec/aldente/aldente-names"} {
			if !slices.Contains(paths, p) {
				t.Errorf("no label for %s", p)
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

// TestInstallNames: a distribution's slirp4netns is not put out of use unless that is asked
// for.
func TestInstallNames(t *testing.T) {
	netlab.Have(t, "make")
	for args, want := range map[string]bool{"": false, "SLIRP4NETNS=1": true} {
		root := t.TempDir()
		c := exec.Command("make", append([]string{"-C", "..", "-o", "all", "install", "DESTDIR=" + root, "PREFIX=/usr"}, strings.Fields(args)...)...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for name, wanted := range map[string]bool{
			"bin/pasta": true, "share/man/man1/pasta.1": true, "bin/slirp4netns": want, "share/man/man1/slirp4netns.1": want,
		} {
			if _, err := os.Stat(filepath.Join(root, "usr", name)); (err == nil) != wanted {
				t.Errorf("make install %s: %s: %v", args, name, err)
			}
		}
	}
}
