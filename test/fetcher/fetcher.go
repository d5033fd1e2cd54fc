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
	"strings"
	"time"
)

// Clients are the names of those that Script uses, in its order.
var Clients = []string{"curl", "python", "go"}

// GoArg is the first argument that makes a program the client in Go: NETWORK URL....
const GoArg = "go-fetch"

// Main is that client, if the program was started as one. It is to be called first.
func Main() {
	if len(os.Args) > 3 && os.Args[1] == GoArg {
		ByGo(os.Args[2], os.Args[3:])
		os.Exit(0)
	}
}

// Script is a shell script in which each client says its name, fetches URLs by an IP version
// ("4", "6"), and prints what comes, or "none URL". self is a program that calls Main, or
// knows GoArg otherwise.
func Script(self, version string, urls ...string) string {
	return fmt.Sprintf("echo curl; for u in %[2]s; do curl -%[1]s -s -m %[6]d $u || echo none $u; done\n"+
		"echo python; /usr/bin/python3 -c '%[3]s' tcp%[1]s %[2]s\n"+
		"echo go; %[4]s %[5]s tcp%[1]s %[2]s\n",
		version, strings.Join(urls, " "), python, self, GoArg, patience)
}

// patience is how many seconds a client waits: nothing that it fetches is silent, but a
// machine may be slow.
const patience = 30

const python = `
import socket, sys
family = socket.AF_INET if sys.argv[1] == "tcp4" else socket.AF_INET6
for url in sys.argv[2:]:
    host, port = url.split("/")[2].rsplit(":", 1)
    try:
        s = socket.socket(family)
        s.settimeout(30)
        s.connect(socket.getaddrinfo(host.strip("[]"), port, family, socket.SOCK_STREAM)[0][4])
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        sys.stdout.write(s.makefile().read().split("\n\n")[1])
    except OSError:
        print("none", url)
`

// ByGo fetches URLs by a network ("tcp4", "tcp6"). It looks names up without the C library,
// whatever this was built with.
func ByGo(network string, urls []string) {
	dial := &net.Dialer{Resolver: &net.Resolver{PreferGo: true}, Timeout: patience * time.Second}
	client := http.Client{Timeout: patience * time.Second, Transport: &http.Transport{
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
