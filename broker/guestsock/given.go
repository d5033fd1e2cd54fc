// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// types are the sockets that carry a kind of link, by ipc.Link*.
var types = [...]struct {
	number int // SOCK_*
	name   string
}{
	ipc.LinkStream:    {unix.SOCK_STREAM, "stream"},
	ipc.LinkVhostUser: {unix.SOCK_STREAM, "stream"},
}

// Usable checks a descriptor that was passed on (-F) for a link of that kind, ipc.Link*.
// A negative one was not given. The error says what has to be passed.
func Usable(fd int, kind uint8) error {
	if fd < 0 {
		return nil
	}
	what := fmt.Sprintf("-F %d", fd)
	switch socketType, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); {
	case errors.Is(err, unix.EBADF):
		return fmt.Errorf("%s: no such descriptor is open: whoever starts passt has to pass it on, without close-on-exec", what)
	case errors.Is(err, unix.ENOTSOCK):
		return fmt.Errorf("%s is not a socket: one end of a connected UNIX %s socket has to be passed on", what, types[kind].name)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case socketType != types[kind].number:
		return fmt.Errorf("%s is not a %[2]s socket: one end of a connected UNIX %[2]s socket has to be passed on", what, types[kind].name)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return fmt.Errorf("%s is not connected: %w; a socket to listen on is named with -s", what, err)
	}
	return nil
}
