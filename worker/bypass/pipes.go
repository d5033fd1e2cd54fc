// SPDX-License-Identifier: Apache-2.0

package bypass

import "syscall"

// Bounds on pipes. A pipe belongs to a flow only while it holds data that the
// other side does not take; otherwise all flows use the same one. Without a
// pipe, data stay in the socket that they came by.
const (
	maxPipes  = 256
	keepPipes = 8 // unused ones that stay open
	minPipe   = 4096
)

type pipe struct {
	r, w int32
	size int
}

// pipes is the pool. Numbers of pipes count from one; zero is none.
type pipes struct {
	all    []pipe
	free   []uint32 // open ones
	closed []uint32 // places of closed ones
	retry  int64    // no pipe is made before this time
}

// newPipes makes a pool of up to size pipes.
func newPipes(size int) pipes {
	p := pipes{
		all:    make([]pipe, size+1),
		free:   make([]uint32, 0, size),
		closed: make([]uint32, 0, size),
	}
	for n := uint32(size); n > 0; n-- {
		p.closed = append(p.closed, n)
	}
	return p
}

// retryPipes is how long to do without, in nanoseconds, once one could not be
// made: the limits that forbid it do not change with every datagram.
const retryPipes = 100_000_000

// get returns an empty pipe, or zero.
func (p *pipes) get(env Env) uint32 {
	if n := len(p.free); n > 0 {
		k := p.free[n-1]
		p.free = p.free[:n-1]
		return k
	}
	n := len(p.closed)
	if n == 0 || env.Now() < p.retry {
		return 0
	}
	r, w, size, e := env.Pipe()
	if e != 0 {
		p.retry = env.Now() + retryPipes
		return 0
	}
	k := p.closed[n-1]
	p.closed = p.closed[:n-1]
	p.all[k] = pipe{r, w, max(size, minPipe)}
	return k
}

// put takes an empty pipe back.
func (p *pipes) put(env Env, k uint32) {
	if len(p.free) >= keepPipes {
		p.discard(env, k)
		return
	}
	p.free = append(p.free, k)
}

// discard closes a pipe with what it holds.
func (p *pipes) discard(env Env, k uint32) {
	env.Close(p.all[k].r)
	env.Close(p.all[k].w)
	p.all[k] = pipe{}
	p.closed = append(p.closed, k)
}

func (p *pipes) close(env Env) {
	for _, k := range p.free {
		p.discard(env, k)
	}
	p.free = p.free[:0]
}

// fill takes bytes from a socket into the pipe.
func (p *pipe) fill(env Env, fd int32) (int, syscall.Errno) { return env.Splice(fd, p.w, p.size) }

// drain passes n bytes on to a socket.
func (p *pipe) drain(env Env, fd int32, n int) (int, syscall.Errno) { return env.Splice(p.r, fd, n) }
