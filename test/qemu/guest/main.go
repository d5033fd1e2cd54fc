// SPDX-License-Identifier: Apache-2.0

// Command guest is the first process of the test's virtual machine. It loads
// drivers, serves echoes, and runs commands for the test, which come over a
// virtio serial port. With an argument it is one of these commands: a client
// for what busybox has none for.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/fetcher"
)

// Request is a command to run. The same types are in the test.
type Request struct {
	ID   int      // the reply has it too
	Args []string // the program and its arguments
}

// Reply is a command's end.
type Reply struct {
	ID     int    // of the request
	Status int    // exit status
	Output string // standard output and error
}

func main() {
	if os.Getpid() == 1 {
		fmt.Println("guest:", boot())
		select {}
	}
	commands := map[string]func([]string) error{
		"transfer": transfer, "datagrams": datagrams, "ask": ask, "dhcpv6": lease, "advertisement": advertisement,
		"offloads": offloads, "features": features, "queues": queues, "rings": rings, "channels": channels,
		fetcher.GoArg: fetch, "names": names,
	}
	f := commands[os.Args[1]]
	if f == nil {
		fmt.Println("no such command:", os.Args[1])
		os.Exit(2)
	}
	if err := f(os.Args[2:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// boot makes of a bare kernel what the test needs and serves the test. It
// returns only if that is not possible.
func boot() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	os.Setenv("PATH", "/bin")
	if err := load("/modules"); err != nil {
		return err
	}
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, out)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, out)
	}
	if err := serve(); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	return obey(port)
}

// load inserts all modules of a folder. One that needs another is refused
// until that is there.
func load(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	for err == nil && len(left) > 0 {
		var again []string
		for _, name := range left {
			if err = insert(name); err != nil {
				again = append(again, name)
			}
		}
		if len(again) < len(left) {
			err = nil
		}
		left = again
	}
	return err
}

func insert(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func openPort() (*os.File, error) {
	for range 500 {
		if names, _ := filepath.Glob("/dev/vport*"); len(names) > 0 {
			return os.OpenFile(names[0], os.O_RDWR, 0)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.New("no virtio serial port")
}

// obey runs commands as they come, all at once.
func obey(port *os.File) error {
	var mu sync.Mutex
	out := json.NewEncoder(port)
	tell := func(r Reply) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(r)
	}
	tell(Reply{}) // the test waits for this
	in := bufio.NewReader(port)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF { // nobody at the other end
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		var r Request
		if err := json.Unmarshal(line, &r); err != nil {
			fmt.Println("guest: request:", err)
			continue
		}
		go func() {
			cmd := exec.Command(r.Args[0], r.Args[1:]...)
			b, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil {
				tell(Reply{r.ID, 127, err.Error()})
				return
			}
			tell(Reply{r.ID, cmd.ProcessState.ExitCode(), string(b)})
		}()
	}
}

// serve answers on TCP and UDP port 7 with what comes, and on TCP port 9 with
// the address of the client.
func serve() error {
	echo, err := net.Listen("tcp", ":7")
	if err != nil {
		return err
	}
	go each(echo, func(c net.Conn) { _, _ = io.Copy(c, c) })
	who, err := net.Listen("tcp", ":9")
	if err != nil {
		return err
	}
	go each(who, func(c net.Conn) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		fmt.Fprint(c, strings.TrimPrefix(host, "::ffff:"))
	})
	u, err := net.ListenUDP("udp", &net.UDPAddr{Port: 7})
	if err != nil {
		return err
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	// Answers leave from the address that was asked.
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	go func() {
		b, oob := make([]byte, 1<<16), make([]byte, 256)
		for {
			n, k, _, from, err := u.ReadMsgUDPAddrPort(b, oob)
			if err == nil {
				_, _, _ = u.WriteMsgUDPAddrPort(b[:n], oob[:k], from)
			}
		}
	}()
	return nil
}

func each(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			f(c)
		}()
	}
}
