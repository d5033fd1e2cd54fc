// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// askAgain is after how long an answer to a datagram is not waited for any more.
const askAgain = 200 * time.Millisecond

// lastAnswers is how long answers are waited for that are not there at the end: who waits for
// long is not to be left out.
const lastAnswers = 2 * time.Second

// Asks are clients that send one byte and wait for one byte, on connections that stay open.
// All clients are one thread, which waits for all of them by epoll(7), and all servers are
// another, as in programs that serve many. The Go runtime is kept out of their way, see Bulk.
type Asks struct {
	// Every is how much time there is from one question of a client to its next, half to one
	// and a half of that; zero: the next follows the answer at once. A question whose time comes
	// before the answer to the last counts from then on.
	Every time.Duration

	Took  []time.Duration // from a question to its answer, by Run
	Calls []int           // answers of each client, also while warming up

	clients, servers []int
	datagrams        int // the server's socket, zero: there are connections
	procs, gc        int // of the runtime, before Prepare
}

// Connection adds both ends of a TCP connection, and takes both over.
func (a *Asks) Connection(client, server net.Conn) error {
	err := a.Client(client)
	fd, e := descriptor(server.(syscall.Conn))
	server.Close()
	if e != nil {
		return fmt.Errorf("a server's socket: %w", e)
	}
	a.servers = append(a.servers, fd)
	return err
}

// Client adds a client's socket, and takes it over.
func (a *Asks) Client(c net.Conn) error {
	fd, err := descriptor(c.(syscall.Conn))
	c.Close()
	if err != nil {
		return fmt.Errorf("a client's socket: %w", err)
	}
	a.clients = append(a.clients, fd)
	return nil
}

// Server sets the socket that answers datagrams, and takes it over.
func (a *Asks) Server(c *net.UDPConn) error {
	fd, err := descriptor(c)
	c.Close()
	if err != nil {
		return fmt.Errorf("the server's socket: %w", err)
	}
	a.datagrams = fd
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	// Questions of all clients may wait at once.
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
}

// descriptor duplicates a socket's.
func descriptor(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return -1, e
	}
	return fd, err
}

// Close closes all sockets.
func (a *Asks) Close() {
	if a.procs != 0 {
		runtime.GOMAXPROCS(a.procs)
		debug.SetGCPercent(a.gc)
	}
	for _, fd := range slices.Concat(a.clients, a.servers) {
		unix.Close(fd)
	}
	if a.datagrams != 0 {
		unix.Close(a.datagrams)
	}
}

// Prepare makes room for the threads, which stops the world for a moment: what must not be
// while a Bulk runs. Close, which is not to come before that one's Stop, takes it back. Run
// prepares itself where that was not done.
func (a *Asks) Prepare() {
	runtime.GC()
	a.gc = debug.SetGCPercent(-1)
	a.procs = runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(a.procs + 2)
}

// Run asks for span, after a quarter of it for warming up.
func (a *Asks) Run(span time.Duration) error {
	if a.procs == 0 {
		a.Prepare()
	}
	a.Took, a.Calls = make([]time.Duration, 0, 1<<16), make([]int, len(a.clients))
	var server sync.WaitGroup
	defer server.Wait()
	server.Go(a.serve)
	defer func() {
		// Of both ends: not each translator tells the one of the other's end soon.
		for _, fd := range slices.Concat(a.clients, a.servers) {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		}
		if a.datagrams != 0 {
			_ = unix.Shutdown(a.datagrams, unix.SHUT_RDWR)
		}
	}()
	var client sync.WaitGroup
	var err error
	client.Go(func() { err = a.ask(span) })
	client.Wait()
	return err
}

// waiter is an epoll instance that the runtime does not know of.
type waiter struct {
	fd     int
	events [256]unix.EpollEvent
}

// watch makes a waiter for sockets, of which each is told by its index.
func watch(fds []int) (*waiter, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := &waiter{fd: fd}
	for i, s := range fds {
		if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, s, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return w, nil
}

// wait returns how many events there are, after a while at the latest.
func (w *waiter) wait(most time.Duration) int {
	t := unix.NsecToTimespec(int64(max(most, 0)))
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(w.fd), uintptr(unsafe.Pointer(&w.events)), uintptr(len(w.events)),
		uintptr(unsafe.Pointer(&t)), 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

// asked is what one client has asked.
type asked struct {
	at      time.Time // when; or when it is to ask, where it has its answer
	again   time.Time // when to ask again, where no answer has come
	waiting bool
}

// ask is all clients.
func (a *Asks) ask(span time.Duration) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w, err := watch(a.clients)
	if err != nil {
		return err
	}
	defer unix.Close(w.fd)
	b := []byte{'?'}
	all := make([]asked, len(a.clients))
	pace := rand.New(rand.NewPCG(1, 2)) // the same for all who are compared
	start := time.Now()
	for i := range all {
		all[i].at = start.Add(a.Every * time.Duration(i) / time.Duration(len(all)))
	}
	begin, end := start.Add(span/4), start.Add(span/4+span)
	last := end.Add(lastAnswers)
	for now := start; now.Before(last); now = time.Now() {
		next, left := last, false
		for i := range all { // whose time it is
			c := &all[i]
			if !c.waiting && !c.at.Before(end) {
				continue // has asked for the last time
			}
			left = true
			due := c.at
			if c.waiting {
				due = c.again
			}
			if due.After(now) {
				next = earlier(next, due)
				continue
			}
			_, _ = call(unix.SYS_WRITE, a.clients[i], b)
			c.waiting, c.again = true, a.patience(now, last)
		}
		if !left {
			return nil
		}
		for k := range w.wait(next.Sub(now)) {
			i := w.events[k].Fd
			c := &all[i]
			n, e := call(unix.SYS_READ, a.clients[i], b)
			if n == 0 && e != unix.EAGAIN && e != unix.ECONNREFUSED {
				return fmt.Errorf("client %d after %d answers: %w", i, a.Calls[i], e)
			}
			if n == 0 || !c.waiting {
				continue
			}
			now := time.Now()
			a.Calls[i]++
			if c.at.After(begin) {
				a.Took = append(a.Took, now.Sub(c.at))
			}
			switch {
			case a.Every != 0:
				c.at, c.waiting = c.at.Add(a.Every/2+time.Duration(pace.Int64N(int64(a.Every)))), false
			case now.Before(end):
				c.at, c.again = now, a.patience(now, last)
				_, _ = call(unix.SYS_WRITE, a.clients[i], b)
			default:
				c.at, c.waiting = now, false
			}
		}
	}
	return fmt.Errorf("some had no answer %v after the end", lastAnswers)
}

// patience is when to ask again: what is lost of a connection comes without.
func (a *Asks) patience(now, last time.Time) time.Time {
	if a.datagrams == 0 {
		return last
	}
	return now.Add(askAgain)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// serve is all servers, until their clients end.
func (a *Asks) serve() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if a.datagrams != 0 {
		a.serveDatagrams()
		return
	}
	w, err := watch(a.servers)
	if err != nil {
		return
	}
	defer unix.Close(w.fd)
	b := make([]byte, 64)
	for open := len(a.servers); open > 0; {
		for k := range w.wait(time.Second) {
			fd := a.servers[w.events[k].Fd]
			n, e := call(unix.SYS_READ, fd, b)
			if n > 0 {
				_, _ = call(unix.SYS_WRITE, fd, b[:n])
			} else if e != unix.EAGAIN {
				_ = unix.EpollCtl(w.fd, unix.EPOLL_CTL_DEL, fd, nil)
				open--
			}
		}
	}
}

func (a *Asks) serveDatagrams() {
	b := make([]byte, 64)
	var from unix.RawSockaddrInet6
	for {
		size := uint32(unsafe.Sizeof(from))
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(a.datagrams), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
			uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
		if e != 0 || n == 0 {
			return
		}
		_, _, _ = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(a.datagrams), uintptr(unsafe.Pointer(&b[0])), n, 0,
			uintptr(unsafe.Pointer(&from)), uintptr(size))
	}
}
