// SPDX-License-Identifier: Apache-2.0

// Package datagram is what the translators of UDP, of echo and of UDP past the
// guest's link share: the queue of what waits for a socket, how datagrams are
// joined for one system call and cut again, what follows from a write that
// failed, and what the guest is told of it.
package datagram
