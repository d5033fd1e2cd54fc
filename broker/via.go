// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/reader"
	"aldente/ipc"
)

// getent asks whoever the host asks for names (nsswitch.conf). What comes back over the
// network is read there, and not by a process that has the caller's authority.
const getent = "/usr/bin/getent"

// viaTime is how long the proxy's name, or its password from a descriptor, may take.
const viaTime = 10 * time.Second

// prepareVia finds out which address the proxy has and reads its password, once and as
// the caller.
func (in *instance) prepareVia() (at netip.AddrPort, err error) {
	v := in.cfg.Via
	if v == nil {
		return at, nil
	}
	a := v.Addr()
	if !a.IsValid() {
		if a, err = lookUp(v.Host); err != nil {
			return at, fmt.Errorf("--via: %s: %w (give its address instead)", v.Host, err)
		}
		in.log.Info("proxy", "name", v.Host, "address", a.String())
	}
	p := &ipc.Proxy{What: v.What}
	p.UserLen = uint8(copy(p.User[:], v.User))
	if in.cfg.HasViaSecret() {
		if err := readSecret(in.cfg, p); err != nil {
			return at, err
		}
	}
	in.proxy = p
	return netip.AddrPortFrom(a, v.Port), nil
}

// readSecret reads the password into p: the first line. No copy of it stays.
func readSecret(cfg *cli.Config, p *ipc.Proxy) error {
	const most = ipc.MaxProxySecret + 2 // with an end of line
	var b []byte
	var err error
	where := cfg.ViaSecret
	if fd := cfg.ViaSecretFD; fd >= 0 {
		where = fmt.Sprintf("fd:%d", fd)
		b, err = readLine(fd, most, time.Now().Add(viaTime))
		// A command would have it, and could read the file again.
		err = errors.Join(err, letGo([]int{fd}))
	} else {
		b, err = reader.Read(where, most, guarded(cfg))
	}
	defer clear(b[:cap(b)])
	if err != nil {
		if errno := unix.Errno(0); errors.As(err, &errno) {
			err = errno
		}
		return fmt.Errorf("--via-secret %s: %w", where, err)
	}
	n := len(b)
	for i, c := range b {
		if c == '\n' || c == '\r' && i+1 < len(b) && b[i+1] == '\n' {
			n = i
			break
		}
	}
	switch {
	case n == 0:
		return fmt.Errorf("--via-secret %s: there is no password in its first line", where)
	case n > ipc.MaxProxySecret:
		return fmt.Errorf("--via-secret %s: a password has at most %d bytes", where, ipc.MaxProxySecret)
	}
	p.SecretLen = uint8(copy(p.Secret[:], b[:n]))
	return nil
}

// readLine reads from a descriptor up to the end of a line, which whoever holds its other
// end may be about to write. It has one piece of memory.
func readLine(fd, most int, until time.Time) ([]byte, error) {
	b := make([]byte, 0, most+1)
	for len(b) <= most {
		n, err := readSome(fd, b[len(b):cap(b)], until)
		if err != nil || n == 0 {
			return b, err
		}
		b = b[:len(b)+n]
		if bytes.IndexByte(b[len(b)-n:], '\n') >= 0 {
			break
		}
	}
	return b, nil
}

// readSome reads from a descriptor once there is something.
func readSome(fd int, b []byte, until time.Time) (int, error) {
	for {
		left := time.Until(until)
		if left <= 0 {
			return 0, unix.ETIMEDOUT
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, int(left/time.Millisecond)+1); err == unix.EINTR || err == nil && n == 0 {
			continue
		} else if err != nil {
			return 0, err
		}
		n, err := unix.Read(fd, b)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return max(n, 0), err
	}
}

// lookUp asks for the address of a host: the first, which is the one that the host itself
// would try first.
func lookUp(name string) (a netip.Addr, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return a, err
	}
	defer r.Close()
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		w.Close()
		return a, err
	}
	pid, err := syscall.ForkExec(getent, []string{"getent", "ahosts", name}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"LC_ALL=C"}, Files: []uintptr{uintptr(null), w.Fd(), uintptr(null)},
		Sys: &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL},
	})
	unix.Close(null)
	w.Close()
	if err != nil {
		return a, fmt.Errorf("%s: %w", getent, err)
	}
	line, err := readLine(int(r.Fd()), 256, time.Now().Add(viaTime))
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		if _, e := syscall.Wait4(pid, nil, 0, nil); e != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return a, err
	}
	text, _, _ := strings.Cut(string(line), " ")
	if a, err = netip.ParseAddr(text); err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return a, errors.New("no such host is known")
	}
	return a.Unmap(), nil
}
