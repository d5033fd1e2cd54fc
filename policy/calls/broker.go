// SPDX-License-Identifier: Apache-2.0

package calls

import (
	"slices"

	"golang.org/x/sys/unix"
)

// sockets permits a family with a type and a protocol, which has to be named. Raw
// and packet sockets, and MPTCP, which Landlock's TCP rights do not see, are in no
// list.
func sockets(user, why string, domain, typ, protocol uint64) []Rule {
	return []Rule{{
		Call: "socket",
		Args: []Arg{is(0, domain), except(1, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, typ), is(2, protocol)},
		Why:  why, User: user,
	}}
}

// inet is the sockets that flows and listeners are made of, and what is done to
// them in the broker and in the agent.
func inet() []Rule {
	const user = "broker/inet"
	return join(
		sockets(user, "TCP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP),
		sockets(user, "TCP", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP),
		sockets(user, "UDP", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP),
		sockets(user, "UDP", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP),
		plain(user, "flows and listeners", "bind", "listen"),
		options(user, "TCP: ports of connections that are closed", "setsockopt", unix.SOL_SOCKET, unix.SO_REUSEADDR),
		options(user, "UDP: sockets of ours on one port, once it was had exclusively", "setsockopt", unix.SOL_SOCKET, unix.SO_REUSEPORT),
		options(user, "the interface", "setsockopt", unix.SOL_SOCKET, unix.SO_BINDTODEVICE),
		options(user, "urgent bytes stay in the stream", "setsockopt", unix.SOL_SOCKET, unix.SO_OOBINLINE),
		options(user, "errors, where a datagram was sent to", "setsockopt", unix.IPPROTO_IP, unix.IP_RECVERR, unix.IP_PKTINFO),
		options(user, "one family or both, errors, where a datagram was sent to", "setsockopt",
			unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, unix.IPV6_RECVERR, unix.IPV6_RECVPKTINFO),
		options(user, "datagrams of equal size in one call", "setsockopt", unix.IPPROTO_UDP, unix.UDP_GRO),
	)
}

// outward is what connecting a flow takes besides.
func outward() []Rule {
	const user = "broker/inet"
	return join(
		sockets(user, "echo", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP),
		sockets(user, "echo", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6),
		plain(user, "flows", "connect", "getsockname"),
		options(user, "peeking", "setsockopt", unix.SOL_SOCKET, unix.SO_PEEK_OFF),
		options(user, "nothing received until connected, or of a listener only what --allow-in lets", "setsockopt", unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, unix.SO_DETACH_FILTER),
		options("broker/sockets", "whether all sockets on a port are ours", "getsockopt", unix.SOL_SOCKET, unix.SO_COOKIE),
		options(user, "source port chosen late, foreign addresses", "setsockopt",
			unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, unix.IP_FREEBIND),
		options(user, "latency", "setsockopt", unix.IPPROTO_TCP, unix.TCP_NODELAY),
		options(user, "what the guest sends to everybody", "setsockopt", unix.SOL_SOCKET, unix.SO_BROADCAST),
		options(user, "groups: the interface, who hears, and what is joined", "setsockopt",
			unix.IPPROTO_IP, unix.IP_MULTICAST_IF, unix.IP_MULTICAST_LOOP, unix.IP_MULTICAST_ALL, unix.IP_ADD_MEMBERSHIP),
		options(user, "groups: the interface, who hears, and what is joined", "setsockopt",
			unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, unix.IPV6_MULTICAST_LOOP, unix.IPV6_MULTICAST_ALL, unix.IPV6_JOIN_GROUP),
	)
}

// descriptors is what the runtime and package os do with a descriptor that they
// have.
func descriptors() []Rule {
	return join(
		plain("package os", "pipes, log, errors", "read", "write", "close"),
		plain(runtime, "network poller", "epoll_ctl"),
		plain(runtime, "signal handlers", "rt_sigaction"),
	)
}

// Agent is the agent in the guest's namespace once the tap is made and
// configured: it makes sockets, binds some of them, passes them to the broker,
// and lists bound ports on a socket that it has. It connects none, opens no file
// and starts no process.
func Agent() List {
	return List{
		Name: "agent",
		Doc:  "agent, after set-up",
		Rules: join(
			goRunning(),
			goStarting(),
			descriptors(),
			plain("ipc", "records and descriptors", "sendmsg", "recvmsg"),
			scans(),
			inet(),
		),
	}
}

// scans is what looking again and again at what is bound takes.
func scans() []Rule {
	return []Rule{{Call: "timerfd_settime", Args: []Arg{is(1, 0)},
		Why: "when to look again at what is bound, on a timer that is there", User: "broker/wait"}}
}

// own permits to become who the process really is, and nobody else.
func own(user, call string, id uint64) []Rule {
	return []Rule{{Call: call, Args: []Arg{is(0, id), is(1, id), is(2, id)},
		Why: "the first worker's identity, where root has started the broker", User: user}}
}

// replacement is what starting another worker takes. The children inherit the
// filter, so it has to permit what they do before they confine themselves.
func replacement() []Rule {
	const (
		supervise = "broker/supervise"
		entering  = "worker, entering"
		// What a replacement gets new; it joins the other two.
		spaces = unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
		child  = uint64(unix.SIGCHLD)
	)
	self := func(why string, option uint64, rest ...Arg) Rule {
		return Rule{Call: "prctl", Args: append([]Arg{is(0, option)}, rest...), Why: why, User: entering}
	}
	return join(
		[]Rule{
			{Call: "clone", Args: []Arg{is(0, unix.CLONE_FILES|child)},
				Why: "process that joins the first worker's namespaces", User: supervise},
			{Call: "clone", Args: []Arg{except(0, spaces, unix.CLONE_PARENT|unix.CLONE_PIDFD|child)},
				Why: "the worker, in further ones of its own", User: supervise},
			{Call: "setns", Args: []Arg{is(1, unix.CLONE_NEWUSER)}, Why: "user namespace of the first worker", User: supervise},
			{Call: "setns", Args: []Arg{is(1, unix.CLONE_NEWNS)}, Why: "mount namespace of the first worker", User: supervise},
			{Call: "execveat", Args: []Arg{is(4, unix.AT_EMPTY_PATH)}, Why: "the worker's program, by its descriptor", User: supervise},
			// Of a type that is connected for good: one end of a datagram pair
			// could be connected to any socket in the file system.
			{Call: "socketpair", Args: []Arg{is(0, unix.AF_UNIX), except(1, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.SOCK_SEQPACKET), is(2, 0)},
				Why: "channel", User: supervise},
		},
		options(supervise, "a worker that does not read", "setsockopt", unix.SOL_SOCKET, soSndTimeO),
		own(supervise, "setresuid", OwnUID),
		own(supervise, "setresgid", OwnGID),
		plain(supervise, "log, channel and session of a new worker", "pipe2", "dup3", "setsid"),
		plain(supervise, "end of a process", "wait4", "waitid"),
		each(supervise, "ending a worker, by its descriptor", "pidfd_send_signal", 1, uint64(unix.SIGKILL)),
		[]Rule{
			{Call: "arch_prctl", Why: "thread pointer of a new image", User: runtime, Arch: "amd64"},
			{Call: "riscv_hwprobe", Why: "instructions that a new image may use", User: runtime, Arch: "riscv64"},
			{Call: "openat", Args: []Arg{within(2, unix.O_CLOEXEC|unix.O_NONBLOCK)},
				Why: "what the runtime asks of a new image: to read, and it gets nothing", User: runtime},
			{Call: "open", Args: []Arg{within(1, unix.O_CLOEXEC|unix.O_NONBLOCK)},
				Why: "what the runtime asks of a new image: to read, and it gets nothing", User: runtime, Arch: "ppc64le"},
			{Call: "open", Args: []Arg{within(1, unix.O_CLOEXEC|unix.O_NONBLOCK)},
				Why: "what the runtime asks of a new image: to read, and it gets nothing", User: runtime, Arch: "s390x"},
		},
		plain(runtime, "start of a new image", "sched_getaffinity", "uname"),
		each(runtime, "start of a new image: whether its standard streams are open", "fcntl", 1, unix.F_GETFD),
		each(entering, "the second image has no descriptor of its program", "fcntl", 1, unix.F_SETFD),
		[]Rule{{Call: "prlimit64", Args: []Arg{is(0, 0)}, Why: "limits, its own only", User: entering}},
		plain(entering, "empty file system", "statfs"),
		plain(entering, "empty capabilities", "capget", "capset"),
		plain(entering, "second stage", "close_range"),
		plain(entering, "Landlock", "landlock_create_ruleset", "landlock_restrict_self"),
		// A worker is the first process of its namespace. With the broker's
		// numbers that is init, which other signals might tell something.
		[]Rule{
			{Call: "tgkill", Args: []Arg{is(0, 1), is(2, sigPerThreadSyscall)}, Why: "Landlock on all threads", User: entering},
			{Call: "tgkill", Args: []Arg{is(0, 1), is(2, uint64(unix.SIGURG))}, Why: "preemption", User: runtime},
		},
		[]Rule{
			self("dying with the broker", unix.PR_SET_PDEATHSIG, is(1, uint64(unix.SIGKILL))),
			self("non-dumpable", unix.PR_SET_DUMPABLE, is(1, 0)),
			self("no new privileges", unix.PR_SET_NO_NEW_PRIVS, is(1, 1)),
			self("name", unix.PR_SET_NAME),
			self("no writable code", unix.PR_SET_MDWE, is(1, unix.PR_MDWE_REFUSE_EXEC_GAIN)),
			self("nothing by exec", unix.PR_SET_SECUREBITS),
			self("empty capabilities", unix.PR_CAPBSET_DROP),
			self("empty capabilities", unix.PR_CAPBSET_READ),
			self("empty capabilities", unix.PR_CAP_AMBIENT, is(1, unix.PR_CAP_AMBIENT_LOWER)),
		},
	)
}

// ByReplacement marks the reason of a rule that stands in the broker's list for
// the sake of a worker that replaces another, and is one of the worker's own.
const ByReplacement = " (by a replacement)"

// inherited is what a worker or names does and a broker does not: a replacement's own
// lists are stacked on the broker's.
func inherited(have []Rule, those ...List) []Rule {
	var more []Rule
	for _, list := range those {
		for _, r := range list.Rules {
			same := func(h Rule) bool { return h.Call == r.Call && slices.Equal(h.Args, r.Args) }
			if r.Call == "tgkill" || slices.ContainsFunc(have, same) || slices.ContainsFunc(more, same) {
				continue // tgkill: with its own number, in replacement
			}
			r.Why += ByReplacement
			more = append(more, r)
		}
	}
	return more
}

// Broker is the broker once the guest is connected: it opens sockets, replaces
// workers, writes its log. It can open no file by name: Landlock leaves it the
// worker's program and nothing else.
func Broker() List {
	own := join(brokerRunning(), scans())
	return List{Name: "broker", Doc: "broker, after set-up", Rules: join(own, inherited(own, WorkerStart(), NamesStart()))}
}

// BrokerVhost is Broker where the link is vhost-user. It maps nothing: what it has
// beside Broker's is for a worker that replaces another, but for memory that it makes and
// passes on.
func BrokerVhost() List {
	own := join(brokerRunning(), each("broker/guestsock", "memory for what is in flight, for the front end to keep", "memfd_create", 1,
		unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL, unix.MFD_CLOEXEC))
	return List{Name: "broker-vhost", Doc: "broker for vhost-user, after set-up", Rules: join(own, inherited(own, WorkerVhostStart(), NamesStart()))}
}

func brokerRunning() []Rule {
	const (
		broker  = "broker"
		factory = "broker/sockets"
	)
	return join(
		goRunning(),
		goStarting(),
		descriptors(),
		// Worker and agent have an environment of ours.
		each(runtime, "heap pages that are returned, where the caller's GODEBUG has madvdontneed=0", "madvise", 2, unix.MADV_FREE),
		plain("package os", "pipes, log", "fstat", "pread64"),
		plain("package os", "a command's resolv.conf, when the host's resolvers change", "pwrite64"),
		each("package os", "descriptors", "fcntl", 1,
			unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC),
		plain("ipc", "records and descriptors; answers to many requests in one call", "sendmsg", "recvmsg", "sendmmsg"),
		plain("broker", "waiting on a channel", "ppoll"),
		plain("broker", "pipes by which clients look at a capture", "pipe2"),
		inet(),
		outward(),
		plain(broker, "virtual machines on the stream socket", "accept4", "shutdown"),
		options(broker, "the agent's sockets are what was asked for, and of its namespace", "getsockopt", unix.SOL_SOCKET,
			unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL, unix.SO_NETNS_COOKIE),
		options(factory, "whether a connect has ended, and how", "getsockopt", unix.IPPROTO_TCP, unix.TCP_INFO),
		plain(factory, "connects under way, and which sockets still live", "epoll_create1"),
		options(factory, "whether a listener's interface is still the one of its name", "getsockopt", unix.SOL_SOCKET, unix.SO_BINDTODEVICE),
		options(broker, "who connects", "getsockopt", unix.SOL_SOCKET, soPeerCred),
		options("broker/inet", "what was dropped at a listener", "getsockopt", unix.SOL_SOCKET, unix.SO_MEMINFO),
		plain(broker, "path of the guest's namespace", "newfstatat"),
		plain(broker, "log file within its size; half a record that a worker left in the pcap file", "ftruncate"),
		replacement(),
	)
}

// Remover is the process that removes a control socket when its broker has ended. It
// waits for the end of a pipe and reads nothing.
func Remover() List {
	const control = "broker/control"
	return List{
		Name: "remover",
		Doc:  "remover of the control socket",
		Rules: join(
			plain(control, "waiting for the broker's end", "read"),
			plain(control, "whether the socket is still that broker's", "statx"),
			plain(control, "removing it", "unlinkat"),
			plain(control, "end of the process", "exit_group"),
		),
	}
}

// Reader is the process that reads the rules files again when the broker asks for them.
// It waits for a byte of a pipe, and writes what it has read to another.
func Reader() List {
	const reader = "broker/reader"
	return List{
		Name: "reader",
		Doc:  "reader of the rules files",
		Rules: join(
			plain(reader, "waiting for the broker, and reading files", "read"),
			[]Rule{{Call: "openat", Why: "files, to read them", User: reader,
				Args: []Arg{except(2, oNoFollow, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY)}}},
			plain(reader, "what was in them, to the broker", "write"),
			plain(reader, "a file that was read", "close"),
			plain(reader, "end of the process", "exit_group"),
		),
	}
}
