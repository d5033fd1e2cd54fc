// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// notifySocket names the manager's socket, sd_notify(3).
const notifySocket = "NOTIFY_SOCKET"

// patience is how long a manager may take to read what others have told it before: its
// socket has room for few messages.
var patience = 5 * time.Second

// Manager is whoever waits to be told that all is ready. The zero value is nobody.
type Manager struct {
	fd   int
	open bool
}

// Find opens the way to the manager that the environment names, if it names one, and takes it
// out of the environment: whoever is started from here is no part of the service.
func Find() (Manager, error) {
	path, ok := os.LookupEnv(notifySocket)
	os.Unsetenv(notifySocket)
	if !ok || path == "" {
		return Manager{}, nil
	}
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		return Manager{}, fmt.Errorf("--sd-notify: %s is %.200q: the path of a UNIX socket is needed, or @ and an abstract name", notifySocket, path)
	}
	fd, err := sock.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Manager{}, os.NewSyscallError("socket", err)
	}
	wait := unix.NsecToTimeval(int64(patience))
	err = errors.Join(sock.Connect(fd, &unix.SockaddrUnix{Name: path}), sock.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	if err != nil {
		unix.Close(fd)
		return Manager{}, fmt.Errorf("--sd-notify: %s=%.200s: %w (leave %s empty if nobody waits)", notifySocket, path, err, notifySocket)
	}
	return Manager{fd: fd, open: true}, nil
}

// Ready tells the manager that all is ready, once, and lets go of it: what would be said
// later, that the process ends, the manager sees, and a descriptor by which a captured
// process speaks to it there is none.
func (m *Manager) Ready() error {
	if !m.open {
		return nil
	}
	m.open = false
	_, err := unix.Write(m.fd, []byte("READY=1"))
	unix.Close(m.fd)
	return err
}
