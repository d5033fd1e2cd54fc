// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// arg as first argument makes the binary the front-end: Options as JSON.
const arg = "vhost-user-front-end"

// Interface is the name of the guest's network card.
const Interface = "eth0"

// Options of a front-end whose guest is the kernel of a network namespace.
type Options struct {
	Socket   string // path of the back-end's
	Config          // sizes of memory are chosen if there are none
	MTU      int    // over zero: cut and put together here what the back-end cannot, for measurements
	RxBuffer int    // bytes of a mergeable receive buffer, 0: 4096
	Piece    int    // most bytes of a descriptor of a sent frame, 0: any number
	Indirect bool   // use indirect tables, where negotiated
	Chaos    uint64 // over zero, a seed: stalls, kicks late, has buffers of odd sizes, rewrites headers
	Connect  bool   // again and again: when the back-end has gone
}

// Process is a front-end at work.
type Process struct{ cmd *exec.Cmd }

// Main is to be called first by every program that uses Start: it runs the
// front-end, and does not return, if the program was started as such.
func Main() {
	if len(os.Args) != 3 || os.Args[1] != arg {
		return
	}
	var o Options
	err := json.Unmarshal([]byte(os.Args[2]), &o)
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "front-end:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Start makes a network card in the caller's network namespace, down and without
// addresses, with as many queues as the front-end has pairs, and joins it to the
// back-end. The stand-in is a process of its own.
func Start(o Options) (*Process, error) { return StartOn(o, nil) }

// StartOn is Start for a socket that is connected, which it closes.
func StartOn(o Options, socket *os.File) (*Process, error) {
	if socket != nil {
		defer socket.Close()
	}
	o.Pairs = max(o.Pairs, 1)
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", arg, string(text))
	for range o.Pairs {
		tap, err := openTap(o.Pairs > 1)
		if err != nil {
			return nil, err
		}
		defer tap.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, tap)
	}
	if socket != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, socket)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("front-end: %w", err)
	}
	return &Process{cmd}, nil
}

// PID returns the front-end's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the front-end.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the front-end and waits for its end; the network card goes with it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func openTap(many bool) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if many {
		flags |= unix.IFF_MULTI_QUEUE
	}
	r, err := unix.NewIfreq(Interface)
	if err == nil {
		r.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	return f, nil
}

// pump is a front-end with a tap.
type pump struct {
	o      Options
	f      *Frontend
	hdr    int
	chaoss []*chaos
}

// cuts tells whether frames are cut here.
func (p *pump) cuts() bool { return p.o.MTU > 0 && p.f.Features&FHostTSO4 == 0 }

// merges tells whether segments are put together here.
func (p *pump) merges() bool { return p.o.MTU > 0 && p.f.Features&FGuestTSO4 == 0 }

func (p *pump) newChaos() *chaos {
	if p.o.Chaos == 0 {
		return nil
	}
	c := newChaos(p.o.Chaos + uint64(len(p.chaoss)))
	p.chaoss = append(p.chaoss, c)
	return c
}

// memory is more than the rings' buffers take.
func (o *Options) memory() []uint64 {
	if o.Sizes != nil {
		return o.Sizes
	}
	n := uint64(max(o.Ring, 256)) * uint64(o.Pairs)
	size := n*(maxIndirect*descLen*2+2*uint64(o.RxBuffer)+maxFrame+slotAlign*32) + 16<<20
	if o.Protocol == 0 || o.Config.Features&FMrgRxbuf == 0 {
		size += n * maxFrame
	}
	return []uint64{size / 2, size}
}

func run(o Options) error {
	if o.RxBuffer == 0 {
		o.RxBuffer = page
	}
	o.Sizes = o.memory()
	c, err := o.connect(3 + o.Pairs)
	if err != nil {
		return err
	}
	p := &pump{o: o}
	if p.f, err = New(c, o.Config); err != nil {
		return err
	}
	p.hdr = p.f.HeaderLen()
	var loops []func() error
	for i := range o.Pairs {
		tap := 3 + i
		if err := p.prepare(tap); err != nil {
			return err
		}
		d, err := newDown(p, tap, p.f.Rings[2*i])
		if err != nil {
			return err
		}
		u, err := newUp(p, tap, p.f.Rings[2*i+1])
		if err != nil {
			return err
		}
		loops = append(loops, d.run, u.run)
	}
	if err := p.f.Start(); err != nil {
		return err
	}
	// Blocking raw system calls and garbage collection do not go together; little
	// is allocated from here on.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(len(loops) + 4)
	ended := make(chan error, len(loops)+1)
	for _, loop := range loops {
		go func() { ended <- loop() }()
	}
	for _, c := range p.chaoss {
		go c.rewrite()
	}
	go func() { ended <- p.follow() }()
	return <-ended
}

// connect takes the socket that it was given, or dials.
func (o *Options) connect(given int) (*Conn, error) {
	if o.Socket == "" {
		return FileConn(os.NewFile(uintptr(given), "socket"))
	}
	return Dial(o.Socket)
}

// prepare tells a tap what the back-end can do, and so what the guest's kernel may
// leave to it.
func (p *pump) prepare(tap int) error {
	has := func(feature uint64) bool { return p.f.Features&feature != 0 }
	offload := 0
	if has(FCSUM) || p.cuts() {
		offload |= unix.TUN_F_CSUM
	}
	if has(FHostTSO4) || p.cuts() {
		offload |= unix.TUN_F_TSO4
	}
	if has(FHostTSO6) || p.cuts() {
		offload |= unix.TUN_F_TSO6
	}
	if has(FHostUSO) {
		offload |= unix.TUN_F_USO4 | unix.TUN_F_USO6
	}
	err := errors.Join(unix.IoctlSetPointerInt(tap, unix.TUNSETVNETHDRSZ, p.hdr))
	if err == nil {
		err = unix.IoctlSetInt(tap, unix.TUNSETOFFLOAD, offload)
	}
	if err == unix.EINVAL { // older kernels have no USO
		err = unix.IoctlSetInt(tap, unix.TUNSETOFFLOAD, offload&^(unix.TUN_F_USO4|unix.TUN_F_USO6))
	}
	if err != nil {
		return fmt.Errorf("tap: %w", err)
	}
	return nil
}

// follow waits for the end of the connection, and makes the next one if that is
// wanted. Buffers stay with the rings.
func (p *pump) follow() error {
	for {
		for !p.f.Ended(time.Hour) {
		}
		if !p.o.Connect {
			return nil
		}
		c, err := Dial(p.o.Socket)
		if err == nil {
			err = p.f.Reconnect(c)
		}
		if err != nil && !p.f.Ended(0) {
			return fmt.Errorf("connecting again: %w", err)
		}
		for _, r := range p.f.Rings {
			r.ForceKick()
		}
	}
}
