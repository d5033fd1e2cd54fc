// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"aldente/test/fetcher"
	"aldente/test/netlab"
)

// Addresses of the remote: of what is allowed by name, and of something else, where
// there is another resolver, too.
const (
	named4, named6 = "198.51.100.20", "2001:db8:2::20"
	other4, other6 = "198.51.100.30", "2001:db8:2::30"
)

// TestVMByName: a virtual machine whose passt has rules by name fetches from there by curl,
// Python and Go's own resolver, over IPv4 and IPv6, and from nowhere else, whomever it asks;
// refused names no resolver hears of.
func TestVMByName(t *testing.T) {
	if !netlab.Ours() {
		t.Skip("the original has no rules")
	}
	img := needTools(t)
	lab := netlab.New(t, netlab.Options{})
	told, other, dot := namesRemote(lab)
	p := startPasst(t, lab, "-D", "192.0.2.9", "-D", "2001:db8:1::9",
		"--allow", "pypi.test:443", "--allow", "*.pythonhosted.test:443", "--deny", "any")
	v := bootImage(t, lab.Host, img, p.stream(t))
	v.lease(t, false)
	v.addressed(t, "global", slaac6+"/64")
	for _, tt := range []struct{ resolver, options, version, at string }{
		{"192.0.2.9", "", "4", named4}, {"2001:db8:1::9", "", "6", named6}, {"192.0.2.9", "options use-vc\n", "6", named6},
	} {
		script := "printf 'nameserver " + tt.resolver + "\n" + tt.options + "' > /etc/resolv.conf\n"
		got, want := v.must(t, "sh", "-c", script+fetchScript(tt.version)), fetchWant(tt.version, tt.at)
		if got != want {
			t.Errorf("resolver %s %s: got\n%s\nwant\n%s\n%s", tt.resolver, tt.options, got, want, p.Output())
		}
	}
	for resolver, want := range map[string]func(q string) string{
		"192.0.2.9:53": asTold, "[2001:db8:1::9]:53": asTold,
		other4 + ":53": refused, "[" + other6 + "]:53": refused, "192.0.2.9:853": refused, "[2001:db8:1::9]:853": refused,
	} {
		var lines []string
		for _, network := range []string{"udp", "tcp"} {
			for _, q := range questions {
				lines = append(lines, network+" "+q+" "+want(q))
			}
		}
		got := v.must(t, slices.Concat([]string{"guest", "names", resolver}, questions)...)
		if want := strings.Join(lines, "\n"); got != want {
			t.Errorf("asking %s: got\n%s\nwant\n%s\n%s", resolver, got, want, p.Output())
		}
	}
	if v.reaches(named4) == nil || v.reaches(other6) == nil {
		t.Error("echo is answered, which rules with ports do not fit")
	}
	asked := told.Asked()
	for _, q := range asked {
		if name, _, _ := strings.Cut(q, " "); name != "pypi.test" && !strings.HasSuffix(name, ".pythonhosted.test") {
			t.Errorf("the resolver was asked for %s", q)
		}
	}
	if len(asked) == 0 {
		t.Error("the resolver was asked for nothing")
	}
	if asked := other.Asked(); len(asked) > 0 {
		t.Errorf("the other resolver was asked for %v", asked)
	}
	if n := dot.Load(); n > 0 {
		t.Errorf("%d connections or datagrams to port 853", n)
	}
}

// namesRemote has the remote serve what the rules allow and what they do not, with the
// resolver that the guest is told of, another, and something on port 853, whose use it counts.
func namesRemote(lab *netlab.Lab) (told, other *netlab.Zone, dot *atomic.Int32) {
	lab.Remote.IP("addr add "+named4+"/32 dev lo", "addr add "+other4+"/32 dev lo",
		"addr add "+named6+"/128 dev lo nodad", "addr add "+other6+"/128 dev lo nodad")
	for _, port := range []string{"80", "443"} {
		l := lab.Remote.Listen("tcp", "[::]:"+port)
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, "served by", r.Context().Value(http.LocalAddrContextKey))
		}))
	}
	told, other, dot = netlab.NewZone(), netlab.NewZone(), new(atomic.Int32)
	for _, z := range []*netlab.Zone{told, other} {
		for _, n := range []string{"pypi.test", "pythonhosted.test", "deep.files.pythonhosted.test"} {
			z.Set(n, 60, named4, named6)
		}
		z.Set("other.test", 60, other4, other6)
	}
	for _, at := range []string{"192.0.2.9", "[2001:db8:1::9]"} {
		told.Serve(lab.Remote, at+":53")
		l, u := lab.Remote.Listen("tcp", at+":853"), lab.Remote.ListenUDP("udp", at+":853")
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				dot.Add(1)
				c.Close()
			}
		}()
		go func() {
			var b [1]byte
			for _, _, err := u.ReadFrom(b[:]); err == nil; _, _, err = u.ReadFrom(b[:]) {
				dot.Add(1)
			}
		}()
	}
	other.Serve(lab.Remote, other4+":53")
	other.Serve(lab.Remote, "["+other6+"]:53")
	return told, other, dot
}

// fetched are what can be fetched, and not what cannot.
var (
	fetched   = []string{"http://pypi.test:443/", "http://deep.files.PythonHosted.test.:443/"}
	unfetched = []string{"http://pypi.test:80/", "http://pythonhosted.test:443/", "http://other.test:443/"}
)

func fetchURLs(version string) []string {
	literal := map[string]string{"4": other4, "6": "[" + other6 + "]"}[version]
	return slices.Concat(fetched, unfetched, []string{"http://" + literal + ":443/"})
}

func fetchScript(version string) string {
	return fetcher.Script("/bin/guest", version, fetchURLs(version)...)
}

func fetchWant(version, at string) string {
	var lines []string
	for _, client := range fetcher.Clients {
		lines = append(lines, client)
		for i, url := range fetchURLs(version) {
			if i < len(fetched) {
				lines = append(lines, "served by "+net.JoinHostPort(at, "443"))
			} else {
				lines = append(lines, "none "+url)
			}
		}
	}
	return strings.Join(lines, "\n")
}

// questions are names and numbers of types: A, TXT, NULL, ANY, HTTPS.
var questions = []string{"pypi.test/1", "pypi.test/16", "other.test/1", "SeCRet.OTHER.test/16", "other.test/10", "other.test/255", "other.test/65",
	strings.Repeat("a", 63) + ".exfil.test/1"}

// asTold is what a resolver answers that the guest was told of.
func asTold(q string) string {
	switch q {
	case "pypi.test/1":
		return "Success 1"
	case "pypi.test/16":
		return "Success 0"
	}
	return "Refused 0"
}

// refused is what others answer, to whom nothing gets through.
func refused(string) string { return "none" }

// needTools is an image that has curl and Python besides, of this machine.
func needTools(t *testing.T) image {
	t.Helper()
	img := needImage(t)
	netlab.Have(t, "curl", python, "ldd")
	var a archive
	if err := addTools(&a); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(img.initrd)
	if err != nil {
		t.Fatal(err)
	}
	// Archives behind one another are one file system.
	img.initrd = filepath.Join(netlab.Stage(), "initrd-tools")
	if err := os.WriteFile(img.initrd, append(b, a.bytes()...), 0o644); err != nil {
		t.Fatal(err)
	}
	return img
}

const python = "/usr/bin/python3"

// modulesUsed has Python tell which files a client of its is made of, compiled as far as
// they are, and of a folder that it looks for.
const modulesUsed = `
import os, socket, sys
try: socket.getaddrinfo("localhost", 80, socket.AF_INET)
except OSError: pass
print(os.path.dirname(os.__file__) + "/lib-dynload/none", os.devnull)
for m in [os] + list(sys.modules.values()):
    s = getattr(m, "__spec__", None)
    if s and (s.has_location or m is os):
        source = getattr(m, "__file__", s.origin)
        print(source, s.cached if s.cached and os.path.exists(s.cached) else source)
`

// addTools adds curl and Python, with all that they load.
func addTools(a *archive) error {
	curl, err := exec.LookPath("curl")
	if err != nil {
		return err
	}
	all := map[string]string{"/bin/curl": curl, python: python} // by their names in the image
	out, err := exec.Command(python, "-I", "-S", "-c", modulesUsed).Output()
	if err != nil {
		return fmt.Errorf("python3: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if strings.HasSuffix(f[1], ".pyc") {
			f[0] = strings.TrimSuffix(f[0], ".py") + ".pyc" // it counts without its source, and whatever the clock says
		}
		all[f[0]] = f[1]
	}
	for _, program := range []string{curl, python} {
		out, err := exec.Command("ldd", program).Output()
		if err != nil {
			return fmt.Errorf("ldd %s: %w", program, err)
		}
		for _, f := range strings.Fields(string(out)) {
			if filepath.IsAbs(f) {
				all[f] = f
			}
		}
	}
	return a.addFiles(all)
}

// addFiles adds files, and the folders that they are in.
func (a *archive) addFiles(from map[string]string) error {
	made := map[string]bool{"/": true, "/bin": true}
	var folder func(dir string)
	folder = func(dir string) {
		if !made[dir] {
			folder(filepath.Dir(dir))
			made[dir] = true
			a.add(dir[1:], 0o40755, nil)
		}
	}
	for name, file := range from {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		folder(filepath.Dir(name))
		a.add(name[1:], 0o100755, b)
	}
	return nil
}
