// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// gate is a listening socket, and says whom of those who connect it lets in.
type gate struct {
	log      *slog.Logger
	listener *os.File
	users    []uint32 // who may connect
	cookie   uint64   // of our network namespace; zero: any may be the client's
	told     time.Time
	untold   int // refusals since
}

// newGate takes the listening socket over. Whom it lets in are users and root.
func newGate(fd int, name string, users []uint32, log *slog.Logger) *gate {
	return &gate{log: log, listener: os.NewFile(uintptr(fd), name), users: append([]uint32{0}, users...)}
}

// guarded keeps clients of other network namespaces out, which is where the guest's
// processes are.
func (g *gate) guarded(fd int) (err error) {
	g.cookie, err = sock.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err == nil && g.cookie == 0 {
		err = unix.ENOTSUP
	}
	return err
}

// visitor is a client that was let in.
type visitor struct {
	fd  int
	who string // for the log
}

// next waits for the next client that may be one. It reports false when there will
// be none any more.
func (g *gate) next() (visitor, bool) {
	for {
		fd, err := g.accept()
		switch {
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			time.Sleep(acceptPause)
			continue
		case errors.Is(err, os.ErrClosed):
			return visitor{}, false
		case err != nil:
			g.log.Error("control socket: no further client can be had", "error", err)
			return visitor{}, false
		}
		who, why := g.stranger(fd)
		if why == "" {
			return visitor{fd, who}, true
		}
		unix.Close(fd)
		g.refused(who + why)
		time.Sleep(refusalPause)
	}
}

// accept waits for a client by way of the runtime's poller.
func (g *gate) accept() (fd int, err error) {
	conn, err := g.listener.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := conn.Read(func(l uintptr) bool {
		for {
			fd, _, err = sock.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != unix.EINTR && err != unix.ECONNABORTED {
				return err != unix.EAGAIN
			}
		}
	})
	if failed != nil {
		return -1, os.ErrClosed
	}
	return fd, err
}

// stranger returns who a client is and why it may not be one, or "".
//
// The namespace is that in which the client made its socket: the kernel makes ours
// for it in the same. That is settled before the socket is connected, and no process
// gets into a network namespace without privileges over it. So it does not matter
// what has become of the client since, nor which file it has found: a process of the
// guest's is not where this one is.
func (g *gate) stranger(fd int) (who, why string) {
	cred, err := sock.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return "", "no credentials"
	}
	who = fmt.Sprintf("process %d of user %d", cred.Pid, cred.Uid)
	if !slices.Contains(g.users, cred.Uid) {
		return who, " is neither this instance's user nor root"
	}
	if g.cookie == 0 {
		return who, ""
	}
	if cookie, err := sock.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil || cookie != g.cookie {
		return who, " is in another network namespace than this instance, as the guest is"
	}
	return who, ""
}

// refused tells of a client that was refused, once in a while.
func (g *gate) refused(why string) {
	now := time.Now()
	if now.Sub(g.told) < refusalsTold {
		g.untold++
		return
	}
	args := []any{"reason", why}
	if g.untold > 0 {
		args = append(args, "more", g.untold)
	}
	g.told, g.untold = now, 0
	g.log.Warn("control client refused", args...)
}
