// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"aldente/test/machine"
	"aldente/test/netlab"
	fe "aldente/test/vhost/frontend"
)

var families = []struct{ name, remote string }{{"IPv4", "192.0.2.9"}, {"IPv6", "[2001:db8:1::9]"}}

// guests are what drivers and front-ends make of what is offered to them.
var guests = []struct {
	name     string
	without  uint64 // features left out
	protocol uint64 // protocol features left out
	options  fe.Options
}{
	{"everything", 0, 0, fe.Options{Indirect: true}},
	{"no offloads", fe.Offloads, 0, fe.Options{}},
	{"checksums only", fe.Offloads &^ (fe.FCSUM | fe.FGuestCSUM), 0, fe.Options{}},
	{"no mergeable buffers", fe.FMrgRxbuf, 0, fe.Options{}},
	{"no mergeable buffers, no offloads", fe.FMrgRxbuf | fe.Offloads, 0, fe.Options{}},
	{"small buffers, one table of memory", 0, fe.PConfigureMemSlots, fe.Options{RxBuffer: 1536}},
	{"neither events nor tables", fe.FEventIdx | fe.FIndirectDesc, fe.PReplyAck, fe.Options{}},
	{"chains", 0, 0, fe.Options{Piece: 4096}},
	{"many small pieces through tables", 0, 0, fe.Options{Piece: 1100, Indirect: true}},
	{"large rings", 0, 0, fe.Options{Config: fe.Config{Ring: 1024}}},
	{"tiny rings", 0, 0, fe.Options{Config: fe.Config{Ring: 64}}},
	{"in order", 0, 0, fe.Options{Indirect: true, Config: fe.Config{Features: fe.FInOrder}}},
	{"adjacent regions and holes", 0, 0, fe.Options{Config: fe.Config{Hole: 1 << 30}}},
}

// join is passt.join for one of guests.
func (p *passt) joinAs(t *testing.T, k, mtu int) *guest {
	t.Helper()
	o := guests[k].options
	o.Config.Features |= fe.AllFeatures &^ guests[k].without
	o.Protocol = fe.AllProtocol &^ guests[k].protocol
	return p.join(t, o, mtu)
}

// TestTransfer moves data both ways and compares checksums, with guests of all kinds.
func TestTransfer(t *testing.T) {
	for _, mtu := range []int{1500, 65520} {
		for k, tt := range guests {
			t.Run(fmt.Sprintf("%d/%s", mtu, tt.name), func(t *testing.T) {
				lab := netlab.New(t, netlab.Options{})
				g := start(t, lab, "-m", fmt.Sprint(mtu)).joinAs(t, k, mtu)
				for _, f := range families {
					for _, down := range []bool{false, true} {
						addr := f.remote + ":5001"
						begin := time.Now()
						if err := netlab.Transfer(g.NS, lab.Remote, addr, addr, 16<<20, down, 60*time.Second); err != nil {
							t.Errorf("%s, down=%v: %v", f.name, down, err)
						}
						t.Logf("%s, down=%v: %v", f.name, down, time.Since(begin).Round(time.Millisecond))
					}
				}
			})
		}
	}
}

// TestDatagrams sends datagrams of all sizes both ways, joined ones too.
func TestDatagrams(t *testing.T) {
	for k, tt := range guests {
		t.Run(tt.name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			g := start(t, lab).joinAs(t, k, 1500)
			for _, f := range families {
				u := lab.Remote.ListenUDP("udp", f.remote+":5002")
				go netlab.EchoUDP(u)
				c := g.Dial("udp", f.remote+":5002")
				for _, n := range []int{0, 1, 100, 1400, 1472, 1473, 4000, 20_000, 65_000} {
					said := make([]byte, n)
					for i := range said {
						said[i] = byte(i * n)
					}
					if err := echoed(c, said); err != nil {
						t.Errorf("%s, %d bytes: %v", f.name, n, err)
					}
				}
			}
		})
	}
}

// echoed sends a datagram, a few times if it gets lost, until it comes back. Answers to
// earlier ones may come late.
func echoed(c net.Conn, said []byte) (err error) {
	got := make([]byte, 1<<16)
	for range 5 {
		if _, err = c.Write(said); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, err := c.Read(got)
			if err != nil {
				break
			}
			if string(got[:n]) == string(said) {
				return nil
			}
		}
	}
	return fmt.Errorf("it does not come back")
}

// TestQueues has twice as many connections at a time as there are pairs of queues, up to as
// many as there can be.
func TestQueues(t *testing.T) {
	machine.NeedOurs(t)
	for _, pairs := range []int{4, 16} {
		t.Run(fmt.Sprint(pairs), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			o := fe.Options{Indirect: true, Config: fe.Config{Features: fe.AllFeatures, Protocol: fe.AllProtocol, Pairs: pairs, Ring: uint16(1024 / pairs)}}
			g := start(t, lab).join(t, o, 1500)
			failed := make(chan error)
			for i := range 2 * pairs {
				go func() {
					addr := fmt.Sprintf("%s:%d", families[i%2].remote, 6000+i)
					failed <- netlab.Transfer(g.NS, lab.Remote, addr, addr, 128<<20/(2*int64(pairs)), i%4 < 2, 60*time.Second)
				}()
			}
			for range 2 * pairs {
				if err := <-failed; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestEndsOfConnections opens and closes many connections, one after the other.
func TestEndsOfConnections(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := start(t, lab).joinAs(t, 0, 1500)
	for _, f := range families {
		ln := lab.Remote.Listen("tcp", f.remote+":5003")
		go netlab.Echo(ln)
		for i := range 100 {
			said := fmt.Sprint("number ", i)
			if got, err := netlab.Ask(g.NS, "tcp", f.remote+":5003", said); err != nil || got != said {
				t.Fatalf("%s, connection %d: %q came back, %v", f.name, i, got, err)
			}
		}
	}
}

// TestInbound reaches a server in the guest by a forwarded port.
func TestInbound(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := start(t, lab, "-t", "5004").joinAs(t, 0, 1500)
	ln := g.Listen("tcp", ":5004")
	go netlab.Echo(ln)
	if got, err := netlab.Ask(g.NS, "tcp", families[0].remote+":1", ""); err == nil { // the guest is heard of
		t.Fatalf("a closed port answers %q", got)
	}
	got, err := netlab.Ask(lab.Remote, "tcp", netlab.Host4+":5004", "hello")
	if err != nil || got != "hello" {
		t.Errorf("%q came back, %v", got, err)
	}
	c := lab.Remote.Dial("tcp", net.JoinHostPort(netlab.Host4, "5004"))
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Error(err)
	}
}
