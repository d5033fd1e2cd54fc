// SPDX-License-Identifier: Apache-2.0

package sockets

import "time"

// limiter lets one event in a second through and counts the rest.
type limiter struct {
	last   time.Time
	missed int
}

func (l *limiter) allow() bool {
	l.missed++
	if now := time.Now(); now.Sub(l.last) >= time.Second {
		l.last = now
		return true
	}
	return false
}

// count is how many events there were since the last one let through,
// including it, and starts over.
func (l *limiter) count() int {
	n := l.missed
	l.missed = 0
	return n
}
