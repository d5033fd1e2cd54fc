// SPDX-License-Identifier: Apache-2.0

// Package fetcher has programs of three kinds fetch by HTTP what has a name: curl, Python,
// which asks the C library, and Go with a resolver of its own.
package fetcher

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"aldente/test/netlab"
)

// Clients are the names of those that Script uses, in its order.
var Clients = []string{"curl", "python", "go"}

// goArg makes the test binary the client in Go: NETWORK URL....
const goArg = "go-fetch"

// Main is that client, if the program was started as one. It is to be called first.
func Main() {
	if len(os.Args) > 3 && os.Args[1] == goArg {
		byGo(os.Args[2], os.Args[3:])
		os.Exit(0)
	}
}

// Script is a shell script in which each client says its name, fetches URLs by an IP version
// ("4", "6"), and prints what comes, or "none URL".
func Script(version string, urls ...string) string {
	return fmt.Sprintf("echo curl; for u in %[2]s; do curl -%[1]s -s -m 10 $u || echo none $u; done\n"+
		"echo python; /usr/bin/python3 -c '%[3]s' tcp%[1]s %[2]s\n"+
		"echo go; %[4]s %[5]s tcp%[1]s %[2]s\n",
		version, strings.Join(urls, " "), python, filepath.Join(netlab.Stage(), "hold"), goArg)
}

const python = `
import socket, sys
family = socket.AF_INET if sys.argv[1] == "tcp4" else socket.AF_INET6
for url in sys.argv[2:]:
    host, port = url.split("/")[2].rsplit(":", 1)
    try:
        s = socket.socket(family)
        s.settimeout(10)
        s.connect(socket.getaddrinfo(host.strip("[]"), port, family, socket.SOCK_STREAM)[0][4])
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        sys.stdout.write(s.makefile().read().split("\n\n")[1])
    except OSError:
        print("none", url)
`

// byGo looks names up without the C library, whatever this was built with.
func byGo(network string, urls []string) {
	dial := &net.Dialer{Resolver: &net.Resolver{PreferGo: true}, Timeout: 10 * time.Second}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return dial.DialContext(ctx, network, addr)
		},
	}}
	for _, url := range urls {
		r, err := client.Get(url)
		if err != nil {
			fmt.Println("none", url)
			continue
		}
		_, _ = io.Copy(os.Stdout, r.Body)
		r.Body.Close()
	}
}
