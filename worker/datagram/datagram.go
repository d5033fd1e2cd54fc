// SPDX-License-Identifier: Apache-2.0

// Package datagram is what the translators of datagrams share, UDP, echo and
// UDP past the guest's link: what waits for a socket, how datagrams are put
// together for one system call and cut again, what comes of a write that failed,
// and what the guest is told of it.
package datagram
