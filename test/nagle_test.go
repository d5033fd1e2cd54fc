// SPDX-License-Identifier: Apache-2.0

package test

import (
	"io"
	"net"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestNagle has a guest send each message in two pieces, where its kernel keeps the
// second back until the first is acknowledged (RFC 896): as one who asks, and as one who
// answers. Acknowledgments that wait for something to go with have it wait no longer
// than without: a delayed one of the kernel's own takes 40 ms. What a busy machine does,
// it does to connections without that algorithm, too.
func TestNagle(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001")
	for _, f := range families {
		t.Run(f.name+"/asks", func(t *testing.T) {
			slowRounds(t, g.NS, lab.Remote, f.at(f.remote, "10001"), ":10001", 2, 1)
		})
		t.Run(f.name+"/answers", func(t *testing.T) {
			slowRounds(t, lab.Remote, g.NS, f.at(f.host, "10001"), ":10001", 1, 2)
		})
	}
}

// slowRounds compares questions of so many pieces and answers of so many, of which
// whoever has two is the guest, with Nagle's algorithm and without.
func slowRounds(t *testing.T, client, server *netlab.NS, dial, listen string, asks, answers int) {
	ln := server.Listen("tcp", listen)
	defer ln.Close()
	const rounds, long = 200, 20 * time.Millisecond
	slow := map[bool]int{}
	conns := map[bool]net.Conn{}
	for _, nagle := range []bool{false, true} {
		c := client.Dial("tcp", dial)
		defer c.Close()
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, end := range []net.Conn{c, s} {
			_ = end.SetDeadline(time.Now().Add(60 * time.Second))
			if err := end.(*net.TCPConn).SetNoDelay(!nagle); err != nil {
				t.Fatal(err)
			}
		}
		go func() {
			for inPieces(s, asks, answers) == nil {
			}
		}()
		conns[nagle] = c
	}
	for range rounds {
		for nagle, c := range conns {
			start := time.Now()
			if err := say(c, asks); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, answers)); err != nil {
				t.Fatal(err)
			}
			if time.Since(start) > long {
				slow[nagle]++
			}
		}
	}
	t.Logf("of %d rounds %d took more than %v, without the algorithm %d", rounds, slow[true], long, slow[false])
	if slow[true] > slow[false]+rounds/10 {
		t.Errorf("of %d rounds %d took more than %v, without the algorithm %d", rounds, slow[true], long, slow[false])
	}
}

// inPieces reads a question of so many bytes and answers with so many, each by itself.
func inPieces(c net.Conn, question, answer int) error {
	if _, err := io.ReadFull(c, make([]byte, question)); err != nil {
		return err
	}
	return say(c, answer)
}

// say writes n bytes, each by itself.
func say(c net.Conn, n int) error {
	for range n {
		if _, err := c.Write([]byte{'!'}); err != nil {
			return err
		}
	}
	return nil
}
