// SPDX-License-Identifier: Apache-2.0

package calls

import "golang.org/x/sys/unix"

// splicePipe is the size of the bypass's pipes, in bytes: pipe-max-size where
// nobody changed it, as worker/kernel asks for it.
const splicePipe = 1 << 20

const (
	kernel    = "worker/kernel"
	link      = "worker/link"
	vhostuser = "worker/vhostuser"
)

// WorkerStart is the worker from its lock-down until the last start-up record
// is in. The list of its running stage is loaded on top of this one.
func WorkerStart() List {
	return List{
		Name:  "worker-start",
		Doc:   "worker, reading start-up records",
		Rules: join(workerStarting(), carrier()),
	}
}

func workerStarting() []Rule {
	return join(
		goStarting(),
		narrowing(),
		workerRunning(),
		each(kernel, "non-blocking mode of passed descriptors", "fcntl", 1, unix.F_GETFL, unix.F_SETFL),
	)
}

// WorkerVhostStart is WorkerStart where the link is to be vhost-user.
func WorkerVhostStart() List {
	return List{
		Name:  "worker-vhost-start",
		Doc:   "worker for vhost-user, reading start-up records",
		Rules: join(workerStarting(), sharing()),
	}
}

// WorkerVhost is Worker where the link is vhost-user.
func WorkerVhost() List {
	return List{
		Name:  "worker-vhost",
		Doc:   "worker for vhost-user, translating",
		Rules: join(workerRunning(), sharing()),
	}
}

// sharing is what it takes to work on a guest's memory: to judge passed descriptors,
// and to map them, never executable. munmap is the runtime's too.
func sharing() []Rule {
	return []Rule{
		{Call: "mmap", Args: []Arg{is(2, readWrite), is(3, unix.MAP_SHARED|mapNoReserve)},
			Why: "the guest's memory, of passed descriptors: shared, never executable", User: vhostuser},
		{Call: "fcntl", Args: []Arg{is(1, unix.F_GET_SEALS)}, Why: "whether a passed descriptor is one of memory", User: vhostuser},
		{Call: "fstat", Why: "the size of passed memory", User: vhostuser},
		{Call: "preadv2", Args: []Arg{is(5, unix.RWF_NOWAIT)}, Why: "whether a passed descriptor is an event", User: vhostuser},
	}
}

// Worker is the worker translating.
func Worker() List {
	return List{
		Name:  "worker",
		Doc:   "worker, translating",
		Rules: join(workerRunning(), carrier()),
	}
}

// carrier is how the guest of a tap is told that it is to ask for its network again. Of no
// other descriptor that a worker has anybody knows this request.
func carrier() []Rule {
	return each(link, "carrier of the guest's tap", "ioctl", 1, tunSetCarrier)
}

// workerRunning has no call that makes a socket, names a peer, opens a file or
// reaches another process: nothing can be sent but on descriptors that the
// broker has opened and connected.
func workerRunning() []Rule {
	return join(
		goRunning(),
		plain(link, "frames from the guest; start of a record", "read"),
		plain(kernel, "frames, payload, records, log lines", "write", "writev"),
		plain(kernel, "payload and records; MSG_PEEK, MSG_TRUNC, error queue", "recvfrom", "recvmsg", "recvmmsg"),
		plain(kernel, "event loop", "epoll_ctl", "epoll_pwait2"),
		plain(kernel, "end of a flow", "close", "shutdown"),
		[]Rule{
			{Call: "accept4", Args: []Arg{is(3, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)},
				Why: "inbound connections on passed listeners", User: kernel},
			{Call: "splice", Args: []Arg{within(5, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)},
				Why: "loopback flows socket to socket", User: kernel},
			{Call: "pipe2", Args: []Arg{is(1, unix.O_NONBLOCK|unix.O_CLOEXEC)}, Why: "pipes for splice", User: kernel},
			{Call: "fcntl", Args: []Arg{is(1, unix.F_SETPIPE_SZ), is(2, splicePipe)}, Why: "pipes for splice", User: kernel},
		},
		plain(kernel, "local address of an accepted connection", "getsockname"),
		workerOptions(),
	)
}

func workerOptions() []Rule {
	return join(
		options(kernel, "end of connect", "getsockopt", unix.SOL_SOCKET, unix.SO_ERROR),
		options(kernel, "state of a connection, its round-trip time", "getsockopt", unix.IPPROTO_TCP, unix.TCP_INFO),
		options(kernel, "peeking offset, reset at close, low-water mark, keep-alive, buffers", "setsockopt", unix.SOL_SOCKET,
			unix.SO_PEEK_OFF, unix.SO_LINGER, soRcvLowAt, unix.SO_KEEPALIVE, unix.SO_SNDBUF, unix.SO_RCVBUF),
		options(kernel, "the guest's TTL and TOS", "setsockopt", unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS),
		options(kernel, "the guest's hop limit and traffic class", "setsockopt", unix.IPPROTO_IPV6,
			unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS),
		options(kernel, "the guest's TTL, to groups", "setsockopt", unix.IPPROTO_IP, unix.IP_MULTICAST_TTL),
		options(kernel, "the guest's hop limit, to groups", "setsockopt", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS),
		options(kernel, "whether the guest's datagrams may be cut", "setsockopt", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER),
		options(kernel, "whether the guest's datagrams may be cut", "setsockopt", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER),
		options(kernel, "datagrams of equal size in one call", "setsockopt", unix.IPPROTO_UDP, unix.UDP_SEGMENT),
		options(kernel, "latency, bound of a near host's window", "setsockopt", unix.IPPROTO_TCP,
			unix.TCP_NODELAY, unix.TCP_WINDOW_CLAMP),
	)
}
