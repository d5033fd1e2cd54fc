// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"aldente/bench/bed"
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
	return rateOf(took, calls, span), nil
}

// rateOf is the outcome of calls that took so long each.
func rateOf(took []time.Duration, calls int, span time.Duration) rate {
	slices.Sort(took)
	us := func(q int) float64 { return float64(took[len(took)*q/100]) / 1e3 }
	return rate{float64(len(took)) / span.Seconds(), us(50), us(99), calls}
}

// roundTrips sends one byte and waits for one byte on connections that stay
// open, over TCP or UDP; every so often, or at once where that is zero.
func roundTrips(p path, network string, clients int, every, span time.Duration) (rate, error) {
	a := bed.Asks{Every: every}
	defer a.Close()
	if err := open(&a, p, network, clients); err != nil {
		return rate{}, err
	}
	return ask(&a, span)
}

// ask has the clients ask.
func ask(a *bed.Asks, span time.Duration) (rate, error) {
	err := a.Run(span)
	if err == nil && len(a.Took) == 0 {
		err = errors.New("nothing more")
	}
	if err != nil {
		return rate{}, fmt.Errorf("%d requests, then: %w", len(a.Took), err)
	}
	calls := 0
	for _, n := range a.Calls {
		calls += n
	}
	return rateOf(a.Took, calls, span), nil
}

// open opens the connections of that many clients.
func open(a *bed.Asks, p path, network string, clients int) error {
	if network == "udp4" {
		u := p.server.ListenUDP(network, p.listen)
		for range clients {
			c, err := p.greet(u)
			if err == nil {
				err = a.Client(c)
			}
			if err != nil {
				u.Close()
				return err
			}
		}
		return a.Server(u)
	}
	ln := p.server.Listen(network, p.listen)
	defer ln.Close()
	for range clients {
		c, s, err := p.connect(ln)
		if err != nil {
			return err
		}
		if err := a.Connection(c, s); err != nil {
			return err
		}
	}
	return nil
}

// connections connects, asks for one byte and reads to the end, each time
// anew. The server closes first and so keeps the TIME-WAIT states.
func connections(w path, clients int, span time.Duration) (rate, error) {
	ln := w.server.Listen("tcp4", w.listen)
	defer ln.Close()
	go oneByte(ln)
	return inGuest(w, "tcp4", clients, span)
}

// questions asks for one byte by a socket of its own, each time anew, as for names.
func questions(w path, clients int, span time.Duration) (rate, error) {
	u := w.server.ListenUDP("udp4", w.listen)
	defer u.Close()
	go netlab.EchoUDP(u)
	return inGuest(w, "udp4", clients, span)
}

// inGuest runs the client of connections or questions.
func inGuest(w path, network string, clients int, span time.Duration) (rate, error) {
	p := w.client.Start(netlab.Spec{Args: []string{"/proc/self/exe", clientArg, network, w.dial, fmt.Sprint(clients), span.String()}, Timeout: 30*time.Second + 2*span})
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

// clientArg as first argument makes the program the client of connections or questions.
const clientArg = "connections-client"

// client is the part of connections or questions that runs inside the guest's namespace,
// which a thread of the main program would have to enter for each socket.
func client(network, addr, clients, span string) error {
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
	once := connection
	if network == "udp4" {
		once = question
	}
	r, err := requests(n, d, func(int) error { return once(&dialer, addr) })
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

// question asks for one byte by a socket of its own; by another where nothing comes, since a
// translator may want that port of the host's, and somebody else have it.
func question(d *net.Dialer, addr string) error {
	b := [1]byte{'?'}
	for range 10 {
		c, err := d.Dial("udp4", addr)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err = c.Write(b[:]); err == nil {
			_, err = c.Read(b[:])
		}
		c.Close()
		if !os.IsTimeout(err) {
			return err
		}
	}
	return os.ErrDeadlineExceeded
}
