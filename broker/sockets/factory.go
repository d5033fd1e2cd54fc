// SPDX-License-Identifier: Apache-2.0

// Package sockets is the broker's socket factory: one checked request in, one
// connected descriptor out. It alone knows what an address of the guest means
// on the host, and it alone decides whether to connect there; the worker that
// asks is treated as its guest's.
package sockets

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Policy decides whether the guest may reach an address of the host's world.
// Echo has port zero.
type Policy interface {
	Allowed(proto uint8, dst netip.AddrPort) bool
}

// Config is what the factory needs to know.
type Config struct {
	Logger *slog.Logger
	Policy Policy // nil: everything is allowed

	V4, V6 Family

	Namespace    Namespace // see SetNamespace
	MaxListeners int       // zero: as many as there are descriptors

	LoToLo bool // the bypass may lead to the namespace's loopback
}

// Family holds what depends on the address family.
type Family struct {
	Enabled         bool
	Source          netip.Addr // source of connections, zero: the kernel's choice
	Interface       string     // bind sockets to it, empty: the kernel's choice
	Scope           uint32     // interface index for link-local destinations
	DNSForward      netip.Addr // the guest's name for DNSHost, on ports 53 and 853
	DNSHost         netip.Addr
	MapHostLoopback netip.Addr // the guest's name for the host's loopback
	MapGuestAddr    netip.Addr // the guest's name for GuestAddr on the host
	GuestAddr       netip.Addr
	Freebind        bool
}

// Factory serves one worker after the other.
type Factory struct {
	cfg Config
	// OnEvent is called for the worker's events.
	OnEvent func(code uint32)

	mu        sync.Mutex
	listeners map[uint32]Listener
	nextID    uint32

	denied limiter
}

// New makes a factory.
func New(cfg Config) *Factory {
	return &Factory{cfg: cfg, listeners: map[uint32]Listener{}}
}

// SetNamespace tells who opens sockets in the guest's namespace. It must be
// called before the first worker is served.
func (f *Factory) SetNamespace(n Namespace) { f.cfg.Namespace = n }

// Serve answers the worker's requests until the channel ends, which is
// io.EOF, or the worker sends what no worker of ours sends, which is
// ipc.ErrMalformed.
func (f *Factory) Serve(control int) error {
	buf := make([]byte, ipc.MaxBatch*ipc.OpenSize)
	var replies ipc.Replies
	s := &served{fd: control}
	defer s.end()
	var pace pace
	for {
		n, fd, err := ipc.Receive(control, buf, 0)
		if err != nil {
			return err
		}
		pace.take(max(n/ipc.OpenSize, 1), time.Now())
		if fd >= 0 {
			unix.Close(fd)
			return fmt.Errorf("%w: a descriptor from the worker", ipc.ErrMalformed)
		}
		if err := f.message(buf[:n], &replies, s); err != nil {
			replies.Send(control)
			return err
		}
		if err := replies.Send(control); err != nil {
			if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
				return io.EOF
			}
			return fmt.Errorf("answers: %w", err)
		}
		awaitSoon(control)
	}
}

// message handles one message: an event, or an array of requests.
func (f *Factory) message(b []byte, replies *ipc.Replies, s *served) error {
	h, err := ipc.ParseHeader(b)
	if err != nil {
		return err
	}
	switch h.Kind {
	case ipc.KindEvent:
		var e ipc.Event
		if err := e.Decode(b); err != nil {
			return err
		}
		if f.OnEvent != nil {
			f.OnEvent(e.Code)
		}
		return nil
	case ipc.KindOpen:
	default:
		return fmt.Errorf("%w: kind %d from the worker", ipc.ErrMalformed, h.Kind)
	}
	if len(b)%ipc.OpenSize != 0 || len(b) > ipc.MaxBatch*ipc.OpenSize {
		return fmt.Errorf("%w: requests of %d bytes", ipc.ErrMalformed, len(b))
	}
	for ; len(b) > 0; b = b[ipc.OpenSize:] {
		var r ipc.Open
		if err := r.Decode(b[:ipc.OpenSize]); err != nil {
			return err
		}
		answer := ipc.Opened{Token: r.Token}
		fd, later, err := f.open(&r, &answer, s)
		if err != nil {
			return err
		}
		if !later {
			replies.Add(&answer, fd)
		}
	}
	return nil
}

// open handles one request. It returns the socket, or -1 with answer.Errno
// set, or reports that the answer comes later by itself. An error is the
// worker's end.
func (f *Factory) open(r *ipc.Open, answer *ipc.Opened, s *served) (fd int, later bool, err error) {
	switch {
	case r.Flags&ipc.OpenSplice != 0:
		return f.openBypass(r, answer, s)
	case r.Listener != 0:
		return f.openReply(r, answer, s)
	}
	return f.openOut(r, answer), false, nil
}

// openOut opens a flow's socket to where the guest wants it.
func (f *Factory) openOut(r *ipc.Open, answer *ipc.Opened) int {
	src, dst := netip.AddrFrom16(r.Src).Unmap(), netip.AddrFrom16(r.Dst).Unmap()
	fam := f.family(dst)
	if !fam.Enabled || src.Is4() != dst.Is4() {
		answer.Errno = uint16(unix.EAFNOSUPPORT)
		return -1
	}
	to, ok := fam.translate(r.Proto, netip.AddrPortFrom(dst, r.DstPort))
	if !ok {
		answer.Errno = uint16(unix.EACCES)
		return -1
	}
	answer.Addr = to.Addr().As16()
	if !f.allowed(r.Proto, to, answer) {
		return -1
	}
	fam = f.family(to.Addr()) // a forwarded resolver may be of the other one
	var fd int
	var err error
	switch r.Proto {
	case ipc.ProtoTCP:
		fd, err = openTCP(fam, to, answer)
	case ipc.ProtoUDP:
		fd, err = openUDP(fam, to, r.SrcPort, answer)
	default:
		fd, err = openEcho(fam, to, r.SrcPort, answer)
	}
	if err != nil {
		answer.Errno = errno(err)
		return -1
	}
	return fd
}

// allowed applies the egress policy to where a socket would really go.
func (f *Factory) allowed(proto uint8, to netip.AddrPort, answer *ipc.Opened) bool {
	if f.cfg.Policy == nil || f.cfg.Policy.Allowed(proto, to) {
		return true
	}
	answer.Errno = uint16(unix.EACCES)
	answer.Flags |= ipc.OpenedProhibited
	if f.denied.allow() {
		f.cfg.Logger.Warn("refused by the egress policy", "proto", protoName(proto), "to", to.String(), "refusals", f.denied.count())
	}
	return false
}

func (f *Factory) family(a netip.Addr) *Family {
	if a.Is4() {
		return &f.cfg.V4
	}
	return &f.cfg.V6
}

// translate maps the guest's view of a destination to the host's. It reports
// false for what no guest may name: loopback addresses exist on the host only
// under the names the configuration gives them.
func (m *Family) translate(proto uint8, dst netip.AddrPort) (netip.AddrPort, bool) {
	a, port := dst.Addr(), dst.Port()
	transport := proto == ipc.ProtoTCP || proto == ipc.ProtoUDP
	if transport && port == 0 {
		return dst, false
	}
	switch {
	case m.DNSForward.IsValid() && a == m.DNSForward && transport && (port == 53 || port == 853) && m.DNSHost.IsValid():
		return netip.AddrPortFrom(m.DNSHost, port), true
	case m.MapHostLoopback.IsValid() && a == m.MapHostLoopback:
		if a.Is4() {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), true
		}
		return netip.AddrPortFrom(netip.IPv6Loopback(), port), true
	case m.MapGuestAddr.IsValid() && a == m.MapGuestAddr && m.GuestAddr.IsValid():
		return netip.AddrPortFrom(m.GuestAddr, port), true
	case a.IsLoopback(), a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return dst, false
	}
	return dst, true
}

func protoName(p uint8) string {
	switch p {
	case ipc.ProtoTCP:
		return "tcp"
	case ipc.ProtoUDP:
		return "udp"
	}
	return "icmp"
}

func errno(err error) uint16 {
	var e unix.Errno
	if errors.As(err, &e) && e != 0 {
		return uint16(e)
	}
	return uint16(unix.EIO)
}
