// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Damage is what a wire does to frames, each way. Probabilities are 0 to 1.
// The meaning is that of tc-netem(8), which not every kernel has: a reordered
// frame is one that skips the delay, a corrupted one has one bit flipped.
type Damage struct {
	Loss    float64       // part of frames that are lost, 0 to 1
	Delay   time.Duration // of each frame
	Reorder float64       // part of frames that skip the delay, 0 to 1
	Corrupt float64       // part of frames with a bit flipped, 0 to 1
}

// Bad is the damage that transfers have to survive.
var Bad = Damage{Loss: 0.01, Delay: 5 * time.Millisecond, Reorder: 0.05, Corrupt: 0.001}

// Wire copies frames between two interfaces of one namespace, damaging them.
type Wire struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	fds    [2]int
	damage atomic.Pointer[Damage]
}

// Set changes what the wire does from now on.
func (w *Wire) Set(d Damage) { w.damage.Store(&d) }

// wireQueue bounds the frames that are under way.
const wireQueue = 4096

type wireFrame struct {
	due  time.Time
	data []byte
}

// NewWire joins interfaces a and b of n. Both are expected to receive whole
// frames with complete checksums: use [NoOffload] on their peers.
func NewWire(n *NS, a, b string, d Damage) *Wire {
	n.tb.Helper()
	w := &Wire{stop: make(chan struct{})}
	w.Set(d)
	for i, name := range []string{a, b} {
		n.trySysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
		err := n.Do(func() (err error) { w.fds[i], err = rawSocket(name); return })
		if err != nil {
			n.tb.Fatalf("wire on %s: %v", name, err)
		}
	}
	for i := range w.fds {
		q := make(chan wireFrame, wireQueue)
		w.wg.Add(2)
		go w.receive(w.fds[i], w.fds[1-i], q)
		go w.deliver(w.fds[1-i], q)
	}
	n.tb.Cleanup(func() {
		close(w.stop)
		w.wg.Wait()
		unix.Close(w.fds[0])
		unix.Close(w.fds[1])
	})
	return w
}

// rawSocket receives all frames of an interface but those it sends itself.
func rawSocket(name string) (int, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	tv := unix.NsecToTimeval(int64(20 * time.Millisecond))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (w *Wire) receive(from, to int, q chan<- wireFrame) {
	defer w.wg.Done()
	defer close(q)
	buf := make([]byte, 1<<17)
	for {
		select {
		case <-w.stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(from, buf, unix.MSG_TRUNC)
		d := w.damage.Load()
		if err != nil || n > len(buf) || rand.Float64() < d.Loss {
			continue
		}
		f := wireFrame{time.Now().Add(d.Delay), append([]byte(nil), buf[:n]...)}
		if rand.Float64() < d.Corrupt {
			f.data[rand.IntN(n)] ^= 1 << rand.IntN(8)
		}
		if rand.Float64() < d.Reorder {
			send(to, f.data)
			continue
		}
		select {
		case q <- f:
		default: // queue full: one more loss
		}
	}
}

func (w *Wire) deliver(to int, q <-chan wireFrame) {
	defer w.wg.Done()
	for f := range q {
		time.Sleep(time.Until(f.due))
		send(to, f.data)
	}
}

// send ignores errors: a frame that the interface refuses is a lost one.
func send(fd int, b []byte) {
	_, _ = unix.Write(fd, b)
}
