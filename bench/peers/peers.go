// SPDX-License-Identifier: Apache-2.0

// Package peers fetches what aldente is measured against.
package peers

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"aldente/test/netlab"
)

// packages are the peers and the libraries that they are linked with.
var packages = []string{"passt", "slirp4netns", "libc6", "libseccomp2", "libslirp0", "libglib2.0-0t64", "libpcre2-8-0", "libcap2", "libgcc-s1", "libatomic1"}

// Fetch downloads the newest peers once, to a folder below cache, without
// touching the system's own package lists, and lays out runnable copies that
// any user may execute. It returns their folder, which is gone when the program
// ends.
func Fetch(cache string) (dir string, err error) {
	if cache, err = filepath.Abs(cache); err != nil {
		return "", err
	}
	root := filepath.Join(cache, "root")
	if _, err := os.Stat(root); err != nil {
		if err := download(cache, root); err != nil {
			return "", err
		}
	}
	return runnable(root)
}

// command runs a program and returns what it prints.
func command(dir string, args ...string) (string, error) {
	c := exec.Command(args[0], args[1:]...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// debianURI returns the mirror that the machine's own package sources name.
func debianURI() (string, error) {
	out, err := command("", "apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "Debian" && f[1] == "main" && !strings.Contains(f[2], "security") {
			return f[2], nil
		}
	}
	return "", errors.New("no Debian mirror among the package sources (apt-get update may be needed)")
}

func download(cache, root string) error {
	uri, err := debianURI()
	if err != nil {
		return err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(cache, d), 0o755); err != nil {
			return err
		}
	}
	// Keeps ./... out of this folder.
	if err := os.WriteFile(filepath.Join(cache, "go.mod"), []byte("module peers\n"), 0o644); err != nil {
		return err
	}
	list := filepath.Join(cache, "sources.list")
	text := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s sid main\n", uri)
	if err := os.WriteFile(list, []byte(text), 0o644); err != nil {
		return err
	}
	apt := []string{"apt-get", "-q", "-o", "Dir::Etc::SourceList=" + list, "-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::State::Lists=" + filepath.Join(cache, "lists"), "-o", "Dir::Cache=" + filepath.Join(cache, "cache"),
		"-o", "APT::Sandbox::User=root"}
	if _, err := command(cache, append(apt, "update")...); err != nil {
		return err
	}
	debs := filepath.Join(cache, "debs")
	if _, err := command(debs, append(append(apt, "download"), packages...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	part := root + ".part"
	for _, f := range files {
		if _, err := command(cache, "dpkg", "-x", f, part); err != nil {
			return err
		}
	}
	return os.Rename(part, root)
}

// runnable copies the programs and libraries to a folder open to all and
// makes the programs use these libraries: the system's may be older.
func runnable(root string) (string, error) {
	if _, err := exec.LookPath("patchelf"); err != nil {
		if _, err := command("", "apt-get", "install", "-qq", "-y", "--no-install-recommends", "patchelf"); err != nil {
			return "", err
		}
	}
	dir := filepath.Join(netlab.Stage(), "peers")
	lib := filepath.Join(dir, "lib")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		return "", err
	}
	if _, err := command("", "sh", "-c", `cp -L "$1"/usr/lib/*-linux-gnu/*.so* "$2"/ && cp "$1"/usr/bin/passt* "$1"/usr/bin/pasta* "$1"/usr/bin/slirp4netns "$3"/`, "sh", root, lib, dir); err != nil {
		return "", err
	}
	loaders, _ := filepath.Glob(filepath.Join(lib, "ld-linux-*"))
	if len(loaders) != 1 {
		return "", fmt.Errorf("dynamic loader: found %v", loaders)
	}
	programs, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, p := range programs {
		if p == lib {
			continue
		}
		if _, err := command("", "patchelf", "--set-interpreter", loaders[0], "--force-rpath", "--set-rpath", lib, p); err != nil {
			return "", err
		}
	}
	return dir, nil
}
