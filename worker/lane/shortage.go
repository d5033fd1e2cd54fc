// SPDX-License-Identifier: Apache-2.0

package lane

import "time"

// shortagePause is how long there has to be room for connections until another lack
// of it is worth a line in the log, in nanoseconds.
const shortagePause = int64(30 * time.Second)

// shortage is a lack of room for TCP connections, as the log has it.
type shortage struct {
	seen uint64 // connections without room, or that made some, so far
	last int64  // when that number grew
}

// watchShortage tells the log, once while it lasts, that connections find no room.
func (l *Lane) watchShortage() {
	n := l.tcp.Stats.Evicted + l.tcp.Stats.NoMemory
	if n == l.shortage.seen {
		return
	}
	fresh := l.shortage.seen == 0 || l.now-l.shortage.last > shortagePause
	l.shortage = shortage{n, l.now}
	if fresh {
		logf(levelWarning, "no room for more TCP connections: the oldest that nobody has answered make some, others wait connections=%d change_by=%q",
			l.tcp.Len(), "--limit sockets=N, ulimit -n")
	}
}
