// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
)

// callersFDs are the descriptors of -r and -e, which the caller has left open for that.
func callersFDs(cfg *cli.Config) (fds []int) {
	for _, fd := range []*int{cfg.ReadyFD, cfg.ExitFD} {
		if fd != nil {
			fds = append(fds, *fd)
		}
	}
	return fds
}

// ownFDs is where a process finds its descriptors as files.
const ownFDs = "/proc/self/fd/"

// namespaceFDs are those that the paths of the guest's namespaces lead to, where these
// are /proc/self/fd/NUMBER.
func namespaceFDs(cfg *cli.Config) (fds []int) {
	for _, path := range []string{cfg.Target.Path, cfg.Userns} {
		number, ok := strings.CutPrefix(path, ownFDs)
		if n, err := strconv.Atoi(number); ok && err == nil && n >= 0 {
			fds = append(fds, n)
		}
	}
	return fds
}

// letGo closes them, once the namespaces are opened: nobody here needs them any more. In
// the place of standard streams, as which they may come, /dev/null takes over.
func letGo(fds []int) error {
	for _, fd := range fds {
		if fd > 2 {
			unix.Close(fd)
			continue
		}
		null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Dup3(null, fd, 0)
			unix.Close(null)
		}
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// passedOn looks whether the caller has left them open. A number may be that of a
// descriptor of the runtime's by now.
func passedOn(cfg *cli.Config, inherited []int) error {
	for _, fd := range callersFDs(cfg) {
		if fd > 2 && !slices.Contains(inherited, fd) {
			return fmt.Errorf("descriptor %d is not open: whoever starts slirp4netns has to pass it on, without close-on-exec", fd)
		}
	}
	if fd := cfg.ViaSecretFD; fd > 2 && !slices.Contains(inherited, fd) {
		return fmt.Errorf("--via-secret fd:%d: descriptor %d is not open: whoever starts this program has to pass it on", fd, fd)
	}
	if cfg.ReadyFD != nil && cfg.ExitFD != nil && *cfg.ReadyFD == *cfg.ExitFD {
		return fmt.Errorf("--ready-fd and --exit-fd are the same descriptor, %d: the one is closed when the other counts", *cfg.ReadyFD)
	}
	return nil
}

// tellReady writes to the descriptor of -r, and closes it: whoever waits may wait for the
// end. A standard stream stays open, for its number must not become another file's.
func (in *instance) tellReady() {
	if in.cfg.ReadyFD == nil {
		return
	}
	fd := *in.cfg.ReadyFD
	if _, err := unix.Write(fd, []byte("1")); err != nil {
		in.log.Warn("nobody is told that all is ready", "descriptor", fd, "error", err)
	}
	if fd > 2 {
		unix.Close(fd)
	}
}

// awaitExitFD waits for anything to happen to the descriptor of -e, on a thread of its
// own, and closes the channel then. Without -e the channel is nil. What comes is not
// read.
func (in *instance) awaitExitFD() <-chan struct{} {
	if in.cfg.ExitFD == nil {
		return nil
	}
	happened := make(chan struct{})
	go func() {
		fds := []unix.PollFd{{Fd: int32(*in.cfg.ExitFD), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, -1)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				close(happened)
				return
			}
		}
	}()
	return happened
}
