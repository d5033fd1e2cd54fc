// SPDX-License-Identifier: Apache-2.0

package calls

import "golang.org/x/sys/unix"

// naming gives the values of one argument their names in the kernel's headers.
type naming map[uint64]string

var (
	cloneFlags = naming{
		unix.CLONE_VM: "CLONE_VM", unix.CLONE_FS: "CLONE_FS", unix.CLONE_FILES: "CLONE_FILES", unix.CLONE_SIGHAND: "CLONE_SIGHAND",
		unix.CLONE_SYSVSEM: "CLONE_SYSVSEM", unix.CLONE_THREAD: "CLONE_THREAD", unix.CLONE_SETTLS: "CLONE_SETTLS",
		unix.CLONE_PARENT: "CLONE_PARENT", unix.CLONE_PIDFD: "CLONE_PIDFD", unix.CLONE_NEWNET: "CLONE_NEWNET",
		unix.CLONE_NEWPID: "CLONE_NEWPID", unix.CLONE_NEWIPC: "CLONE_NEWIPC", unix.CLONE_NEWUTS: "CLONE_NEWUTS",
		unix.CLONE_NEWCGROUP: "CLONE_NEWCGROUP",
	}
	openFlags = naming{unix.O_CLOEXEC: "O_CLOEXEC", unix.O_NONBLOCK: "O_NONBLOCK", unix.O_NOCTTY: "O_NOCTTY",
		oNoFollow: "O_NOFOLLOW"}
	protections = naming{unix.PROT_READ: "PROT_READ", unix.PROT_WRITE: "PROT_WRITE"}
	mapFlags    = naming{unix.MAP_PRIVATE: "MAP_PRIVATE", unix.MAP_ANONYMOUS: "MAP_ANONYMOUS", unix.MAP_FIXED: "MAP_FIXED",
		mapNoReserve: "MAP_NORESERVE", 8: "MAP_DROPPABLE", unix.MAP_SHARED: "MAP_SHARED"}
	spliceFlags = naming{unix.SPLICE_F_MOVE: "SPLICE_F_MOVE", unix.SPLICE_F_NONBLOCK: "SPLICE_F_NONBLOCK"}
	socketTypes = naming{unix.SOCK_STREAM: "SOCK_STREAM", unix.SOCK_DGRAM: "SOCK_DGRAM", unix.SOCK_SEQPACKET: "SOCK_SEQPACKET",
		unix.SOCK_NONBLOCK: "SOCK_NONBLOCK", unix.SOCK_CLOEXEC: "SOCK_CLOEXEC"}
	families  = naming{unix.AF_INET: "AF_INET", unix.AF_INET6: "AF_INET6", unix.AF_UNIX: "AF_UNIX"}
	protocols = naming{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_ICMPV6: "ICMPv6"}
	levels    = naming{unix.SOL_SOCKET: "SOL_SOCKET", unix.IPPROTO_IP: "IPPROTO_IP", unix.IPPROTO_IPV6: "IPPROTO_IPV6",
		unix.IPPROTO_TCP: "IPPROTO_TCP", unix.IPPROTO_UDP: "IPPROTO_UDP"}
)

// optionNames are those of socket options by level.
var optionNames = map[uint64]naming{
	unix.SOL_SOCKET: {
		unix.SO_ERROR: "SO_ERROR", unix.SO_PEEK_OFF: "SO_PEEK_OFF", unix.SO_LINGER: "SO_LINGER", soRcvLowAt: "SO_RCVLOWAT",
		unix.SO_KEEPALIVE: "SO_KEEPALIVE", unix.SO_SNDBUF: "SO_SNDBUF", unix.SO_RCVBUF: "SO_RCVBUF",
		unix.SO_TYPE: "SO_TYPE", unix.SO_PROTOCOL: "SO_PROTOCOL", unix.SO_DOMAIN: "SO_DOMAIN", unix.SO_REUSEADDR: "SO_REUSEADDR", unix.SO_BROADCAST: "SO_BROADCAST",
		unix.SO_OOBINLINE:    "SO_OOBINLINE",
		unix.SO_BINDTODEVICE: "SO_BINDTODEVICE", unix.SO_ATTACH_FILTER: "SO_ATTACH_FILTER", unix.SO_DETACH_FILTER: "SO_DETACH_FILTER",
		soSndTimeO: "SO_SNDTIMEO", soPeerCred: "SO_PEERCRED", unix.SO_NETNS_COOKIE: "SO_NETNS_COOKIE",
		unix.SO_REUSEPORT: "SO_REUSEPORT", unix.SO_COOKIE: "SO_COOKIE", unix.SO_MEMINFO: "SO_MEMINFO",
	},
	unix.IPPROTO_IP: {
		unix.IP_TTL: "IP_TTL", unix.IP_MTU_DISCOVER: "IP_MTU_DISCOVER", unix.IP_MULTICAST_TTL: "IP_MULTICAST_TTL",
		unix.IP_MULTICAST_IF: "IP_MULTICAST_IF", unix.IP_MULTICAST_LOOP: "IP_MULTICAST_LOOP", unix.IP_MULTICAST_ALL: "IP_MULTICAST_ALL", unix.IP_ADD_MEMBERSHIP: "IP_ADD_MEMBERSHIP", unix.IP_TOS: "IP_TOS", unix.IP_RECVERR: "IP_RECVERR", unix.IP_PKTINFO: "IP_PKTINFO",
		unix.IP_BIND_ADDRESS_NO_PORT: "IP_BIND_ADDRESS_NO_PORT", unix.IP_FREEBIND: "IP_FREEBIND",
	},
	unix.IPPROTO_IPV6: {
		unix.IPV6_MTU_DISCOVER: "IPV6_MTU_DISCOVER", unix.IPV6_MULTICAST_HOPS: "IPV6_MULTICAST_HOPS", unix.IPV6_MULTICAST_IF: "IPV6_MULTICAST_IF",
		unix.IPV6_MULTICAST_LOOP: "IPV6_MULTICAST_LOOP", unix.IPV6_MULTICAST_ALL: "IPV6_MULTICAST_ALL", unix.IPV6_JOIN_GROUP: "IPV6_JOIN_GROUP",
		unix.IPV6_UNICAST_HOPS: "IPV6_UNICAST_HOPS", unix.IPV6_TCLASS: "IPV6_TCLASS", unix.IPV6_V6ONLY: "IPV6_V6ONLY",
		unix.IPV6_RECVERR: "IPV6_RECVERR", unix.IPV6_RECVPKTINFO: "IPV6_RECVPKTINFO",
	},
	unix.IPPROTO_TCP: {
		unix.TCP_INFO: "TCP_INFO", unix.TCP_NODELAY: "TCP_NODELAY", unix.TCP_WINDOW_CLAMP: "TCP_WINDOW_CLAMP",
	},
	unix.IPPROTO_UDP: {unix.UDP_SEGMENT: "UDP_SEGMENT", unix.UDP_GRO: "UDP_GRO"},
}

// argument is what an argument of a call is called, and its values.
type argument struct {
	name   string
	values naming
	flags  bool // a set of bits
}

// arguments are those that rules limit.
var arguments = map[string]map[uint]argument{
	"accept4":           {3: {"flags", socketTypes, true}},
	"clone":             {0: {"flags", cloneFlags, true}},
	"execveat":          {4: {"flags", naming{unix.AT_EMPTY_PATH: "AT_EMPTY_PATH"}, true}},
	"ioctl":             {1: {"request", naming{tunSetCarrier: "TUNSETCARRIER"}, false}},
	"fcntl":             {1: {"command", naming{unix.F_GETFL: "F_GETFL", unix.F_SETFL: "F_SETFL", unix.F_GETFD: "F_GETFD", unix.F_SETFD: "F_SETFD", unix.F_DUPFD_CLOEXEC: "F_DUPFD_CLOEXEC", unix.F_SETPIPE_SZ: "F_SETPIPE_SZ", unix.F_GET_SEALS: "F_GET_SEALS"}, false}, 2: {"size", nil, false}},
	"futex":             {1: {"operation", naming{futexWaitPrivate: "FUTEX_WAIT_PRIVATE", futexWakePrivate: "FUTEX_WAKE_PRIVATE"}, false}},
	"madvise":           {2: {"advice", naming{unix.MADV_DONTNEED: "MADV_DONTNEED", unix.MADV_FREE: "MADV_FREE", unix.MADV_HUGEPAGE: "MADV_HUGEPAGE", unix.MADV_NOHUGEPAGE: "MADV_NOHUGEPAGE"}, false}},
	"memfd_create":      {1: {"flags", naming{unix.MFD_CLOEXEC: "MFD_CLOEXEC", unix.MFD_NOEXEC_SEAL: "MFD_NOEXEC_SEAL"}, true}},
	"mmap":              {2: {"protection", protections, true}, 3: {"flags", mapFlags, true}},
	"open":              {1: {"flags", openFlags, true}},
	"openat":            {2: {"flags", openFlags, true}},
	"pidfd_send_signal": {1: {"signal", naming{uint64(unix.SIGKILL): "SIGKILL"}, false}},
	"pipe2":             {1: {"flags", openFlags, true}},
	"prctl": {0: {"option", naming{unix.PR_SET_PDEATHSIG: "PR_SET_PDEATHSIG", unix.PR_SET_DUMPABLE: "PR_SET_DUMPABLE", unix.PR_SET_NO_NEW_PRIVS: "PR_SET_NO_NEW_PRIVS",
		unix.PR_SET_NAME: "PR_SET_NAME", unix.PR_SET_MDWE: "PR_SET_MDWE", unix.PR_SET_SECUREBITS: "PR_SET_SECUREBITS", unix.PR_CAPBSET_DROP: "PR_CAPBSET_DROP",
		unix.PR_CAPBSET_READ: "PR_CAPBSET_READ", unix.PR_CAP_AMBIENT: "PR_CAP_AMBIENT"}, false}, 1: {"value", nil, false}},
	"preadv2":         {5: {"flags", naming{unix.RWF_NOWAIT: "RWF_NOWAIT"}, true}},
	"prlimit64":       {0: {"process", naming{0: "itself"}, false}},
	"seccomp":         {0: {"operation", naming{unix.SECCOMP_SET_MODE_FILTER: "SECCOMP_SET_MODE_FILTER"}, false}, 1: {"flags", naming{unix.SECCOMP_FILTER_FLAG_TSYNC: "TSYNC"}, true}},
	"setresgid":       {0: {"real", naming{OwnGID: "its own"}, false}, 1: {"effective", naming{OwnGID: "its own"}, false}, 2: {"saved", naming{OwnGID: "its own"}, false}},
	"setresuid":       {0: {"real", naming{OwnUID: "its own"}, false}, 1: {"effective", naming{OwnUID: "its own"}, false}, 2: {"saved", naming{OwnUID: "its own"}, false}},
	"setns":           {1: {"kind", naming{unix.CLONE_NEWUSER: "CLONE_NEWUSER", unix.CLONE_NEWNS: "CLONE_NEWNS"}, false}},
	"socket":          {0: {"family", families, false}, 1: {"type", socketTypes, true}, 2: {"protocol", protocols, false}},
	"socketpair":      {0: {"family", families, false}, 1: {"type", socketTypes, true}, 2: {"protocol", protocols, false}},
	"splice":          {5: {"flags", spliceFlags, true}},
	"timerfd_settime": {1: {"flags", nil, true}},
	"tgkill": {0: {"process", naming{Self: "itself", 1: "1, a worker in its own PID namespace"}, false},
		2: {"signal", naming{sigPerThreadSyscall: "SIGRTMIN+1", uint64(unix.SIGURG): "SIGURG"}, false}},
}
