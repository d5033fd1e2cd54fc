// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// krunArg as first argument makes the binary libkrun's stand-in: descriptor of a tap,
// descriptor of the socket, its type.
const krunArg = "krun-stand-in"

// krunOffload is what libkrun offers its guest, where nobody asks for less.
const krunOffload = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_UFO

// krunBuffer is the size of its buffer: no frame is longer.
const krunBuffer = 65550

// StartKrun makes a network card in the caller's network namespace, down and without
// addresses, and joins it to a connected socket of that type (SOCK_*) as libkrun does
// its guest's: the guest leaves checksums and cutting to hardware, and what it says of
// them is dropped. Frames to it are passed on with an empty header. The socket is
// duplicated.
func StartKrun(socket *os.File, typ int) (*Process, error) {
	tap, err := openTap(tapFlags)
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	if err := unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETOFFLOAD, krunOffload); err != nil {
		return nil, fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", krunArg, "3", "4", strconv.Itoa(typ))
	cmd.ExtraFiles = []*os.File{tap, socket}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("stand-in: %w", err)
	}
	return &Process{cmd}, nil
}

// krun copies frames both ways until the socket ends.
func krun(args []string) error {
	var n [3]int
	for k := range n {
		var err error
		if n[k], err = strconv.Atoi(args[k]); err != nil {
			return err
		}
	}
	tap, socket, prefix := n[0], n[1], 0
	if n[2] == unix.SOCK_STREAM {
		prefix = prefixLen
	}
	// As libkrun has them. The sysctl may allow less.
	_ = unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_SNDBUF, 7<<20)
	_ = unix.SetNonblock(tap, true)
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(4)
	ended := make(chan error, 2)
	go func() { ended <- krunUp(tap, socket, prefix) }()
	vnet := make([]byte, packet.OffloadSize+krunBuffer)
	if prefix > 0 {
		go func() {
			ended <- downward(socket, func(frame []byte) {
				_, _ = call(unix.SYS_WRITE, tap, vnet[:packet.OffloadSize+copy(vnet[packet.OffloadSize:], frame)])
			}, func() {})
		}()
		return <-ended
	}
	go func() {
		for {
			n, err := call(unix.SYS_READ, socket, vnet[packet.OffloadSize:])
			switch {
			case err == unix.EAGAIN:
				wait(socket, unix.POLLIN)
			case err != 0 && err != unix.EINTR || err == 0 && n == 0:
				ended <- err
				return
			case err == 0:
				_, _ = call(unix.SYS_WRITE, tap, vnet[:packet.OffloadSize+n])
			}
		}
	}()
	return <-ended
}

// krunUp passes the guest's frames on, each by a call.
func krunUp(tap, socket, prefix int) error {
	runtime.LockOSThread()
	b := make([]byte, prefixLen+packet.OffloadSize+krunBuffer)
	for {
		n, err := call(unix.SYS_READ, tap, b[prefixLen:])
		if err == unix.EAGAIN {
			wait(tap, unix.POLLIN)
			continue
		}
		if err != 0 {
			return fmt.Errorf("tap: %w", err)
		}
		from := prefixLen + packet.OffloadSize
		frame := b[from-prefix : prefixLen+n]
		if prefix > 0 {
			binary.BigEndian.PutUint32(frame, uint32(len(frame)-prefix))
		}
		for len(frame) > 0 {
			n, err := call(unix.SYS_WRITE, socket, frame)
			switch err {
			case 0:
				frame = frame[n:]
			case unix.EINTR:
			case unix.EAGAIN:
				wait(socket, unix.POLLOUT)
			default:
				return fmt.Errorf("socket: %w", err)
			}
		}
	}
}
