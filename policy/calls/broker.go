// SPDX-License-Identifier: Apache-2.0

package calls

import "golang.org/x/sys/unix"

// sockets permits a family with the types and protocols listed. Raw and packet
// sockets, and MPTCP, which Landlock's TCP rights do not see, are in no list.
func sockets(user, why string, domain uint64, typ uint64, protocols ...uint64) []Rule {
	var rules []Rule
	for _, p := range protocols {
		rules = append(rules, Rule{
			Call: "socket",
			Args: []Arg{is(0, domain), except(1, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, typ), is(2, p)},
			Why:  why, User: user,
		})
	}
	return rules
}

// inet is what opening a flow's socket takes, in the broker and in the agent.
func inet(user string) []Rule {
	return join(
		sockets(user, "TCP", unix.AF_INET, unix.SOCK_STREAM, 0, unix.IPPROTO_TCP),
		sockets(user, "TCP", unix.AF_INET6, unix.SOCK_STREAM, 0, unix.IPPROTO_TCP),
		sockets(user, "UDP", unix.AF_INET, unix.SOCK_DGRAM, 0, unix.IPPROTO_UDP),
		sockets(user, "UDP", unix.AF_INET6, unix.SOCK_DGRAM, 0, unix.IPPROTO_UDP),
		sockets(user, "echo", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP),
		sockets(user, "echo", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6),
		plain(user, "flows and listeners", "bind", "connect", "listen", "getsockname", "getpeername", "accept4", "shutdown"),
		plain(user, "options of flows and listeners", "setsockopt", "getsockopt"),
		plain(user, "datagrams that arrive between bind and connect", "recvfrom", "recvmsg"),
	)
}

// channel is what talking to the other processes takes.
func channel() []Rule {
	return join(
		plain("ipc", "records and descriptors", "sendmsg", "recvmsg", "sendto", "recvfrom", "ppoll"),
		[]Rule{{Call: "socketpair", Args: []Arg{is(0, unix.AF_UNIX)}, Why: "channels", User: "ipc"}},
		[]Rule{{Call: "poll", Why: "waiting on a channel", User: "ipc", Arch: "amd64"}},
	)
}

func netlink(user, why string, protocols ...uint64) []Rule {
	return join(
		sockets(user, why, unix.AF_NETLINK, unix.SOCK_RAW, protocols...),
		sockets(user, why, unix.AF_NETLINK, unix.SOCK_DGRAM, protocols...),
	)
}

// Agent is the agent in the guest's namespace once the tap is made and
// configured.
func Agent() List {
	const agent = "broker/agent"
	return List{
		Name: "agent",
		Doc:  "agent, after set-up",
		Rules: join(
			goFull(),
			channel(),
			inet(agent),
			netlink(agent, "addresses, routes and bound ports of the namespace", unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG),
			plain(agent, "end of the namespace and of the command", "inotify_add_watch", "inotify_rm_watch", "waitid", "wait4"),
			each(agent, "dying with the broker", "prctl", 0, unix.PR_SET_PDEATHSIG, unix.PR_SET_DUMPABLE, unix.PR_SET_NO_NEW_PRIVS),
		),
	}
}

// workerEntering is what a new worker needs before it confines itself. A filter
// is inherited, so a broker that is to start workers must permit it; without
// capabilities, it is of use only in namespaces of one's own.
func workerEntering() []Rule {
	const entering = "worker, entering"
	return join(
		plain(entering, "empty file system", "mount", "umount2", "pivot_root", "fstatfs"),
		plain(entering, "empty capabilities", "capget", "capset"),
		plain(entering, "second stage", "close_range", "execveat"),
		plain(entering, "Landlock", "landlock_create_ruleset", "landlock_restrict_self"),
		each(entering, "what a process does to itself", "prctl", 0,
			unix.PR_SET_PDEATHSIG, unix.PR_SET_DUMPABLE, unix.PR_SET_NO_NEW_PRIVS, unix.PR_SET_NAME, unix.PR_SET_MDWE,
			unix.PR_SET_SECUREBITS, unix.PR_CAPBSET_DROP, unix.PR_CAPBSET_READ, unix.PR_CAP_AMBIENT),
		// Not limited to Self, which is the broker where the worker inherits it.
		plain(entering, "Landlock on all threads", "tgkill"),
		[]Rule{{Call: "arch_prctl", Why: "thread pointer of a new image", User: runtime, Arch: "amd64"}},
	)
}

// Broker is the broker once the guest is connected: it opens sockets, starts
// workers, writes its log.
func Broker() List {
	const (
		factory   = "broker/sockets"
		supervise = "broker/supervise"
	)
	// What a new worker gets: a process of its own in new namespaces.
	const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID |
		unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	const child = uint64(unix.SIGCHLD)
	return List{
		Name: "broker",
		Doc:  "broker, after set-up",
		Rules: join(
			goFull(),
			channel(),
			inet(factory),
			sockets(factory, "guest's stream socket, system log", unix.AF_UNIX, unix.SOCK_STREAM, 0),
			sockets(factory, "guest's stream socket, system log", unix.AF_UNIX, unix.SOCK_DGRAM, 0),
			netlink("broker/hostnet", "addresses and routes of the host", unix.NETLINK_ROUTE, unix.NETLINK_SOCK_DIAG),
			[]Rule{
				{Call: "clone", Args: []Arg{except(0, namespaces|unix.CLONE_VM|unix.CLONE_VFORK|unix.CLONE_PIDFD, child)},
					Why: "starting a worker", User: supervise},
			},
			plain(supervise, "starting a worker", "execve", "chdir", "setsid"),
			plain(supervise, "end of a worker", "wait4", "waitid", "pidfd_send_signal", "kill"),
			each(supervise, "maps of users of a worker's namespace", "prctl", 0, unix.PR_GET_DUMPABLE),
			workerEntering(),
			plain("broker", "end of the namespace", "inotify_init1", "inotify_add_watch", "inotify_rm_watch"),
			plain("broker", "rotating the log, removing files it made", "renameat", "renameat2", "fchmod"),
		),
	}
}
