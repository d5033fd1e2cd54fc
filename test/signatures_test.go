// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// sum is the SHA-256 of "a\nb\nc\n".
const sum = "880553fca8fcea94e325ee2cfb48e5a985cc797f39a14cc6d3cedecfeb2ae4d2"

// TestSignatures: a release that is signed is verified, and nothing else is: neither what was
// changed afterwards, whichever file it is, nor what somebody else has signed.
func TestSignatures(t *testing.T) {
	netlab.Have(t, "sha256sum")
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("needs ssh-keygen")
	}
	keys := t.TempDir()
	run := func(args ...string) (string, error) {
		c := exec.Command(args[0], args[1:]...)
		c.Env = append(os.Environ(), "SSH_AUTH_SOCK=")
		out, err := c.CombinedOutput()
		return string(out), err
	}
	key := func(name string) string {
		path := filepath.Join(keys, name)
		if out, err := run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return path
	}
	ours, theirs := key("ours"), key("theirs")
	signers := filepath.Join(keys, "signers")
	write(t, signers, "one@aldente.example "+read(t, ours+".pub"))

	const provenance = `{"subject":[{"name":"aldente-1.0.0.tar.xz","digest":{"sha256":"` + sum + `"}}],"predicate":{"resolvedDependencies":[{"name":"source","digest":{"gitCommit":"0123456789012345678901234567890123456789"}}]}}`
	release := func(t *testing.T, key string) string {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "aldente-1.0.0.tar.xz"), "a\nb\nc\n")
		write(t, filepath.Join(dir, "SHA256SUMS"), sum+"  aldente-1.0.0.tar.xz\n")
		write(t, filepath.Join(dir, "aldente-1.0.0.provenance.json"), provenance)
		if out, err := run("../packaging/sign.sh", key, dir); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return dir
	}
	sign := func(dir, file string) error {
		out, err := run("ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", ours, filepath.Join(dir, file))
		if err != nil {
			return errors.New(out)
		}
		return nil
	}
	for name, tt := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"as it was signed": {func(string) error { return nil }, "made of commit 0123456789012345678901234567890123456789"},
		"another archive": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "aldente-1.0.0.tar.xz"), []byte("a\nb\nd\n"), 0o644)
		}, "a file is not the one that was signed"},
		"no archive": {func(dir string) error { return os.Remove(filepath.Join(dir, "aldente-1.0.0.tar.xz")) }, "none of them is here"},
		"other sums": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(strings.Repeat("0", 64)+"  aldente-1.0.0.tar.xz\n"), 0o644)
		}, "SHA256SUMS is not what"},
		"another commit": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "aldente-1.0.0.provenance.json"), []byte(strings.Replace(provenance, "0123", "3210", 1)), 0o644)
		}, "provenance.json is not what"},
		"without a signature": {func(dir string) error { return os.Remove(filepath.Join(dir, "SHA256SUMS.sig")) }, "has no signature"},
		"provenance of another release": {func(dir string) error {
			const file = "aldente-1.0.0.provenance.json"
			return errors.Join(os.WriteFile(filepath.Join(dir, file), []byte(strings.Replace(provenance, sum, strings.Repeat("0", 64), 1)), 0o644),
				os.Remove(filepath.Join(dir, file+".sig")), sign(dir, file))
		}, "is about other files"},
		"the signature of the other file": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "SHA256SUMS.sig"), []byte(read(t, filepath.Join(dir, "aldente-1.0.0.provenance.json.sig"))), 0o644)
		}, "SHA256SUMS is not what"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := release(t, ours)
			if err := tt.change(dir); err != nil {
				t.Fatal(err)
			}
			out, err := run("../packaging/verify.sh", signers, "one@aldente.example", dir)
			if (err == nil) != strings.HasPrefix(tt.want, "made of") || !strings.Contains(out, tt.want) {
				t.Errorf("%v, %q, want %q", err, out, tt.want)
			}
		})
	}
	t.Run("by somebody else", func(t *testing.T) {
		if out, err := run("../packaging/verify.sh", signers, "one@aldente.example", release(t, theirs)); err == nil || !strings.Contains(out, "SHA256SUMS is not what") {
			t.Errorf("%v, %q", err, out)
		}
	})
	t.Run("changed before it is signed", func(t *testing.T) {
		dir := release(t, ours)
		write(t, filepath.Join(dir, "aldente-1.0.0.tar.xz"), "x\n")
		if out, err := run("../packaging/sign.sh", ours, dir); err == nil {
			t.Errorf("signed: %q", out)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
