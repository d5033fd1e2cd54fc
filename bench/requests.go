// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"aldente/test/netlab"
)

// rate is the outcome of a request/response measurement.
type rate struct {
	PerSecond float64
	P50, P99  float64 // microseconds
	Calls     int     // of all, also while warming up
}

// requests runs once over and over in clients goroutines and collects how
// long each call took.
func requests(clients int, span time.Duration, once func(client int) error) (rate, error) {
	var mu sync.Mutex
	var took []time.Duration
	calls := 0
	var failed error
	var wg sync.WaitGroup
	begin := time.Now().Add(span / 4)
	end := begin.Add(span)
	for i := range clients {
		wg.Go(func() {
			var mine []time.Duration
			n := 0
			for ; ; n++ {
				start := time.Now()
				if start.After(end) {
					break
				}
				if err := once(i); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					break
				}
				if start.After(begin) {
					mine = append(mine, time.Since(start))
				}
			}
			mu.Lock()
			took = append(took, mine...)
			calls += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if failed != nil || len(took) == 0 {
		return rate{}, fmt.Errorf("%d requests, then: %w", len(took), failed)
	}
	slices.Sort(took)
	us := func(q int) float64 { return float64(took[len(took)*q/100]) / 1e3 }
	return rate{float64(len(took)) / span.Seconds(), us(50), us(99), calls}, nil
}

// roundTrips sends one byte and waits for one byte on connections that stay
// open, over TCP or UDP.
func roundTrips(p path, network string, clients int, span time.Duration) (rate, error) {
	if network == "tcp4" {
		ln := p.server.Listen(network, p.listen)
		defer ln.Close()
		go netlab.Echo(ln)
	} else {
		u := p.server.ListenUDP(network, p.listen)
		defer u.Close()
		go netlab.EchoUDP(u)
	}
	conns := make([]net.Conn, clients)
	for i := range conns {
		c, err := p.client.DialError(network, p.dial, 5*time.Second)
		if err != nil {
			return rate{}, err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(span*2 + 10*time.Second))
		conns[i] = c
	}
	return requests(clients, span, func(i int) error {
		b := [1]byte{'?'}
		if _, err := conns[i].Write(b[:]); err != nil {
			return err
		}
		_, err := io.ReadFull(conns[i], b[:])
		return err
	})
}

// connections connects, asks for one byte and reads to the end, each time
// anew. The server closes first and so keeps the TIME-WAIT states.
func connections(w path, clients int, span time.Duration) (rate, error) {
	ln := w.server.Listen("tcp4", w.listen)
	defer ln.Close()
	go oneByte(ln)
	p := w.client.Start(netlab.Spec{Args: []string{"/proc/self/exe", clientArg, w.dial, fmt.Sprint(clients), span.String()}, Timeout: 30*time.Second + 2*span})
	st := p.Wait()
	var r rate
	if err := json.Unmarshal([]byte(p.Stdout()), &r); st != 0 || err != nil {
		return r, fmt.Errorf("client: status %d, %v\n%s", st, err, p.Output())
	}
	return r, nil
}

// oneByte returns one byte to each client, and closes.
func oneByte(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err == nil {
				_, _ = c.Write(b)
			}
			c.Close()
		}()
	}
}

// clientArg as first argument makes the program the client of connections.
const clientArg = "connections-client"

// client is the part of connections that runs inside the guest's namespace,
// which a thread of the main program would have to enter for each socket.
func client(addr, clients, span string) error {
	n, err := strconv.Atoi(clients)
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(span)
	if err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}
	dialer.SetMultipathTCP(false)
	r, err := requests(n, d, func(int) error { return connection(&dialer, addr) })
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// connection asks for one byte on a connection of its own.
func connection(d *net.Dialer, addr string) error {
	c, err := d.Dial("tcp4", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := [1]byte{'?'}
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	if _, err = c.Read(b[:]); err == io.EOF {
		return nil
	}
	return err
}
