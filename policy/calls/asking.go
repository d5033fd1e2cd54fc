// SPDX-License-Identifier: Apache-2.0

package calls

import "golang.org/x/sys/unix"

const names = "names/kernel"

// NamesStart is aldente-names from its lock-down until the last start-up record is in.
// The list of its running stage is loaded on top of this one.
func NamesStart() List {
	return List{
		Name: "names-start",
		Doc:  "names, reading start-up records",
		Rules: join(
			goStarting(),
			[]Rule{{Call: "seccomp", Args: []Arg{is(0, unix.SECCOMP_SET_MODE_FILTER), is(1, unix.SECCOMP_FILTER_FLAG_TSYNC)},
				Why: "loading the narrower list", User: "policy"}},
			namesRunning(),
		),
	}
}

// Names is aldente-names, answering.
func Names() List {
	return List{
		Name:  "names",
		Doc:   "names, answering",
		Rules: namesRunning(),
	}
}

// namesRunning has no call that makes a socket, names a peer, sets an option, opens a
// file or reaches another process: a question goes out by a socket that the broker has
// connected, or not at all.
func namesRunning() []Rule {
	return join(
		goRunning(),
		plain(names, "questions, and answers of resolvers", "read"),
		plain(names, "answers, questions to resolvers, records, log lines", "write"),
		plain(names, "records, and sockets with them", "recvmsg"),
		plain(names, "event loop", "epoll_ctl"),
		plain(names, "end of a client, or of a question to a resolver", "close"),
	)
}
