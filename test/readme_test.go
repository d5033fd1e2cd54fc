// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// readmeExample is how one of README.md's examples is tried.
type readmeExample struct {
	stdin   string // for a shell
	before  string // what is done first
	after   string // what shows that it works
	instead string // a word of the example, and what stands for it
	with    string
	root    bool   // by root of the whole system
	real    bool   // not by root of a user namespace: tcpdump becomes another user there
	client  string // asks this address of the host for the page while the example runs
	want    []string
}

var readmeExamples = map[int]readmeExample{
	1: {stdin: "ip -o address; ip route; exit 7\n", want: []string{`inet 192\.0\.2\.2/24`, `inet6 2001:db8:1::2/64`, `default via 192\.0\.2\.1`, `status 7`}},
	2: {want: []string{`^the page`, `status 0`}},
	3: {with: "sleep 5", instead: "sleep 1000", after: "nsenter -t $! -U -n --preserve-credentials ip -o address",
		want: []string{`status 0`, `inet 192\.0\.2\.2/24`}},
	4: {root: true, before: "ip netns add blue", after: "ip netns exec blue ip -o address; ip netns delete blue",
		want: []string{`status 0`, `inet 192\.0\.2\.2/24`}},
	5: {instead: "python3 -m http.server 80", with: "busybox httpd -f -p 80", client: "192.0.2.2:8080"},
	6: {want: []string{`inet 192\.0\.2\.2/24`, `default via 192\.0\.2\.1`, `status 0`}},
	7: {stdin: "ip -4 -o address; ip route; ip link; exit\n", want: []string{`inet 10\.0\.2\.15/24`, `default via 10\.0\.2\.2`, `mtu 1500`, `status 0`}},
	8: {want: []string{`the host's page`, `status 0`}},
	9: {want: []string{`example\.org\.\s+60\s+IN\s+A\s+198\.51\.100\.9`, `status 0`}},
	10: {real: true, instead: "tcpdump", with: `echo "status $?"; tcpdump -n`,
		want: []string{`^the page`, `status 0`, `198\.51\.100\.9\.80: Flags \[S\]|2001:db8:2::9\.80: Flags \[S\]`}},
}

// TestReadme tries the examples of README.md, in a shell, as they stand there.
func TestReadme(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "curl", "dig", "dhclient", "tcpdump", "busybox", "unshare")
	b, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "## Ten examples")
	text, _, _ = strings.Cut(text, "\n## ")
	found := regexp.MustCompile("(?m)^# (\\d+)\\. .*\n((?:[^#`\n].*\n)+)").FindAllStringSubmatch(text, -1)
	if len(found) != len(readmeExamples) {
		t.Errorf("%d examples in the document, %d tried", len(found), len(readmeExamples))
	}
	lab := netlab.New(t, netlab.Options{})
	v4, v6 := netip.MustParseAddr(netlab.Far4), netip.MustParseAddr(netlab.Far6)
	netlab.ServeDNS(lab.Host, "127.0.0.53:53", v4, v6)
	servePage(lab.Remote.Listen("tcp", ":80"), "the page")
	servePage(tls.NewListener(lab.Remote.Listen("tcp", ":443"), &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}), "the page")
	servePage(lab.Host.Listen("tcp", "127.0.0.1:8000"), "the host's page")
	for _, m := range found {
		n, _ := strconv.Atoi(m[1])
		t.Run(m[1], func(t *testing.T) { tryExample(t, lab.For(t), m[2], readmeExamples[n]) })
	}
}

func servePage(ln net.Listener, text string) {
	go func() {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, text) }))
	}()
}

// selfSigned is a certificate, which curl is told not to look at.
func selfSigned(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"example.org"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tryExample runs the lines of an example in a shell with files of its own.
func tryExample(t *testing.T, lab *netlab.Lab, lines string, e readmeExample) {
	if e.root || e.real {
		needRoot(t)
	}
	if e.instead != "" && !strings.Contains(lines, e.instead) {
		t.Fatalf("no %q in %q", e.instead, lines)
	}
	lines = strings.ReplaceAll(lines, e.instead, e.with)
	home, err := os.MkdirTemp(netlab.Stage(), "readme")
	if err == nil {
		err = os.WriteFile(filepath.Join(home, ".curlrc"), []byte("insecure\n"), 0o644)
	}
	if err == nil {
		err = os.Chmod(home, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	user := netlab.Nobody
	if e.root {
		user = nil
	}
	script := "cd " + home + "\nexport HOME=$PWD SHELL=/bin/sh PATH=" + filepath.Dir(netlab.Pasta()) + ":$PATH\n" + lines
	switch {
	case e.client != "":
		script = strings.Replace(script, lines, "exec "+lines, 1) // it is ended by a signal
	case !strings.Contains(lines, "$?"):
		script += "echo \"status $?\"\n" + e.after + "\n"
	}
	wrap := `mount -t tmpfs none /run && mkdir /run/netns && mount -t tmpfs none /var/lib/dhcp && chmod 777 /var/lib/dhcp && `
	p := runScript(t, lab, wrap, e.before, script, e.stdin, user)
	if e.client != "" {
		served := eventually(20*time.Second, func() bool {
			c, err := lab.Host.DialError("tcp4", e.client, time.Second)
			if err != nil {
				return false
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			fmt.Fprint(c, "GET /.curlrc HTTP/1.0\r\n\r\n")
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			return strings.Contains(string(b[:n]), "200 OK")
		})
		p.Kill()
		if !served {
			t.Errorf("no page after\n%s\n%s", lines, p.Output())
		}
		return
	}
	p.Wait()
	for _, want := range e.want {
		if !regexp.MustCompile("(?m)" + want).MatchString(p.Output()) {
			t.Errorf("no %q after\n%s\n%s", want, lines, p.Output())
		}
	}
}

// runScript runs a script as a user, in a mount namespace with a resolver of the
// host's loopback.
func runScript(t *testing.T, lab *netlab.Lab, wrap, before, script, stdin string, user *netlab.User) *netlab.Proc {
	resolv := filepath.Join(netlab.Stage(), "readme-resolv")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.53\noptions timeout:5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if before != "" {
		before += " && "
	}
	args := []string{"unshare", "-m", "sh", "-c", wrap + `mount --bind "$1" /etc/resolv.conf && ` + before + `shift && exec "$@"`, "sh", resolv}
	if user != nil && !netlab.Nested() {
		args = append(args, "setpriv", fmt.Sprintf("--reuid=%d", user.UID), fmt.Sprintf("--regid=%d", user.GID), "--clear-groups")
	}
	args = append(args, "sh", "-c", script)
	return lab.Host.Start(netlab.Spec{Args: args, Stdin: strings.NewReader(stdin), Timeout: time.Minute})
}
