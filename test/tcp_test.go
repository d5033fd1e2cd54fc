// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// iperf is what the tests read of iperf3's report.
type iperf struct {
	End struct {
		Sent     struct{ Bytes, Retransmits int64 } `json:"sum_sent"`
		Received struct {
			Bytes int64
			Rate  float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	}
	Error string
}

// runIperf measures from client to a server at addr in another namespace.
func runIperf(t *testing.T, client, server *netlab.NS, addr string, args ...string) iperf {
	t.Helper()
	netlab.Have(t, "iperf3")
	srv := server.Start(netlab.Spec{Args: []string{"iperf3", "-s", "-1", "-p", "5201"}})
	waitListen(t, server, ":1451") // 5201
	p := client.Start(netlab.Spec{Args: append([]string{"iperf3", "-J", "-c", addr, "-p", "5201"}, args...)})
	st := p.Wait()
	var r iperf
	if err := json.Unmarshal([]byte(p.Stdout()), &r); err != nil || st != 0 || r.Error != "" {
		t.Fatalf("iperf3 %v: status %d, %v %s\n%s", args, st, err, r.Error, p.Output())
	}
	srv.Wait()
	return r
}

// waitListen waits for a TCP listener; suffix is how its address ends in
// /proc/net/tcp.
func waitListen(t *testing.T, n *netlab.NS, suffix string) {
	t.Helper()
	for range 200 {
		for line := range strings.Lines(n.Read("/proc/net/tcp") + "\n" + n.Read("/proc/net/tcp6")) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], suffix) && f[3] == "0A" {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: nothing listens on %s", n.Name, suffix)
}

func TestIperf3(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		for _, dir := range []string{"up", "down"} {
			for _, streams := range []int{1, 16} {
				t.Run(fmt.Sprintf("%s/%s/%d", f.name, dir, streams), func(t *testing.T) {
					args := []string{"-t", "1", "-P", fmt.Sprint(streams)}
					if dir == "down" {
						args = append(args, "-R")
					}
					r := runIperf(t, g.NS, lab.Remote, f.remote, args...)
					t.Logf("%.2f Gbit/s, %d retransmitted", r.End.Received.Rate/1e9, r.End.Sent.Retransmits)
					if r.End.Received.Bytes < 1<<20 {
						t.Errorf("%d bytes in a second", r.End.Received.Bytes)
					}
				})
			}
		}
	}
}

func TestBulk(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	for _, f := range families {
		for _, dir := range []string{"up", "down"} {
			t.Run(f.name+"/"+dir, func(t *testing.T) {
				start := time.Now()
				err := netlab.Transfer(g.NS, lab.Remote, f.at(f.remote, "9000"), f.at(f.remote, "9000"), size, dir == "down", 100*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d MiB in %v", size>>20, time.Since(start).Round(time.Millisecond))
			})
		}
	}
}

func TestCurl(t *testing.T) {
	netlab.Have(t, "curl")
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	dir := t.TempDir()
	file := filepath.Join(dir, "body")
	body := []byte(strings.Repeat("0123456789abcdef", 1<<18))
	if err := os.WriteFile(file, body, 0o644); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(body) })
	mux.HandleFunc("PUT /", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x", n, h.Sum(nil))
	})
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			go func() { _ = http.Serve(lab.Remote.Listen("tcp", f.at(f.remote, "80")), mux) }()
			url := "http://" + f.at(f.remote, "80") + "/"
			if out := g.Must("curl", "-sS", "--max-time", "20", url); out != string(body) {
				t.Errorf("download: %d bytes, want %d", len(out), len(body))
			}
			want := fmt.Sprintf("%d %x", len(body), sha256.Sum256(body))
			if out := g.Must("curl", "-sS", "--max-time", "20", "-T", file, url); out != want {
				t.Errorf("upload: %s, want %s", out, want)
			}
		})
	}
}

func TestHalfClose(t *testing.T) {
	netlab.Have(t, "nc")
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		go netlab.Echo(lab.Remote.Listen("tcp", f.at(f.remote, "7")))
		t.Run(f.name+"/nc -N", func(t *testing.T) {
			p := g.Start(netlab.Spec{Args: []string{"nc", "-N", f.remote, "7"}, Stdin: strings.NewReader("hello"), Timeout: 10 * time.Second})
			if st := p.Wait(); st != 0 || p.Stdout() != "hello" {
				t.Errorf("status %d, %q", st, p.Output())
			}
		})
		t.Run(f.name+"/remote first", func(t *testing.T) {
			remoteClosesFirst(t, lab, g, f)
		})
	}
}

// remoteClosesFirst has the remote half-close before the guest has sent
// anything, and the guest send afterwards.
func remoteClosesFirst(t *testing.T, lab *netlab.Lab, g *netlab.Guest, f family) {
	ln := lab.Remote.Listen("tcp", f.at(f.remote, "8007"))
	got := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		_ = c.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(c)
		got <- fmt.Sprint(string(b), err)
	}()
	c := g.Dial("tcp", f.at(f.remote, "8007")).(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("guest read %d, %v, want EOF", n, err)
	}
	time.Sleep(100 * time.Millisecond)
	fmt.Fprint(c, "late")
	_ = c.CloseWrite()
	select {
	case s := <-got:
		if s != "late<nil>" {
			t.Errorf("remote got %q", s)
		}
	case <-time.After(soonEnough):
		t.Error("remote got nothing")
	}
}

func TestRefused(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			_, err := g.DialError("tcp", f.at(f.remote, "1"), 5*time.Second)
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v, want ECONNREFUSED", err)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("route add unreachable 198.51.100.128/25", "route add prohibit 203.0.113.0/24",
		"-6 route add unreachable 2001:db8:dead::/48", "-6 route add prohibit 2001:db8:bad::/48")
	g := lab.Guest()
	// On the guest's side these are ordinary destinations.
	g.IP("route flush type unreachable", "route flush type prohibit", "-6 route flush type unreachable", "-6 route flush type prohibit")
	for _, tt := range []struct {
		name, addr string
		want       []error
	}{
		{"no route IPv4", "198.51.100.200:80", []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH}},
		{"prohibited IPv4", "203.0.113.5:80", []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES}},
		{"no route IPv6", "[2001:db8:dead::1]:80", []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH}},
		{"prohibited IPv6", "[2001:db8:bad::1]:80", []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !netlab.Ours() {
				tt.want = append(tt.want, syscall.ECONNREFUSED)
			}
			_, err := g.DialError("tcp", tt.addr, 4*time.Second)
			for _, w := range tt.want {
				if errors.Is(err, w) {
					return
				}
			}
			t.Errorf("got %v, want one of %v", err, tt.want)
		})
	}
}

func TestReset(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		ln := lab.Remote.Listen("tcp", f.at(f.remote, "8009"))
		for _, who := range []string{"remote", "guest"} {
			t.Run(f.name+"/by "+who, func(t *testing.T) {
				gc := g.Dial("tcp", f.at(f.remote, "8009")).(*net.TCPConn)
				a, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				closer, reader := a.(*net.TCPConn), gc
				if who == "guest" {
					closer, reader = reader, closer
				}
				fmt.Fprint(closer, "x") // both ends are established
				_ = reader.SetDeadline(time.Now().Add(soonEnough))
				if _, err := io.ReadFull(reader, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				_ = closer.SetLinger(0)
				_ = closer.Close()
				if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("got %v, want ECONNRESET", err)
				}
			})
		}
	}
}
