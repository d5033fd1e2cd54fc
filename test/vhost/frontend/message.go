// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of a front-end, by their numbers.
const (
	GetFeatures         = 1
	SetFeatures         = 2
	SetOwner            = 3
	ResetOwner          = 4
	SetMemTable         = 5
	SetLogBase          = 6
	SetLogFD            = 7
	SetVringNum         = 8
	SetVringAddr        = 9
	SetVringBase        = 10
	GetVringBase        = 11
	SetVringKick        = 12
	SetVringCall        = 13
	SetVringErr         = 14
	GetProtocolFeatures = 15
	SetProtocolFeatures = 16
	GetQueueNum         = 17
	SetVringEnable      = 18
	SendRARP            = 19
	NetSetMTU           = 20
	GetConfig           = 24
	SetConfig           = 25
	GetInflightFD       = 31
	SetInflightFD       = 32
	ResetDevice         = 34
	GetMaxMemSlots      = 36
	AddMemReg           = 37
	RemMemReg           = 38
	SetStatus           = 39
	GetStatus           = 40
	SetDeviceStateFD    = 42
	CheckDeviceState    = 43
)

// Feature bits of virtio and its network device, as masks.
const (
	FCSUM             = 1 << 0
	FGuestCSUM        = 1 << 1
	FMTU              = 1 << 3
	FMAC              = 1 << 5
	FGuestTSO4        = 1 << 7
	FGuestTSO6        = 1 << 8
	FHostTSO4         = 1 << 11
	FHostTSO6         = 1 << 12
	FMrgRxbuf         = 1 << 15
	FStatus           = 1 << 16
	FCtrlVQ           = 1 << 17
	FMQ               = 1 << 22
	FLogAll           = 1 << 26
	FIndirectDesc     = 1 << 28
	FEventIdx         = 1 << 29
	FProtocolFeatures = 1 << 30
	FVersion1         = 1 << 32
	FInOrder          = 1 << 35
	FRingReset        = 1 << 40
	FGuestUSO4        = 1 << 54
	FGuestUSO6        = 1 << 55
	FHostUSO          = 1 << 56
)

// Offloads are the features by which one side leaves the cutting of frames, or
// their checksums, to the other.
const Offloads = FCSUM | FGuestCSUM | FHostTSO4 | FHostTSO6 | FHostUSO | FGuestTSO4 | FGuestTSO6 | FGuestUSO4 | FGuestUSO6

// AllFeatures are those that a front-end of this package can use.
const AllFeatures = Offloads | FMTU | FMrgRxbuf | FStatus | FMQ | FIndirectDesc | FEventIdx | FProtocolFeatures | FVersion1 | FRingReset

// Feature bits of the protocol, as masks.
const (
	PMQ                = 1 << 0
	PLogShmFD          = 1 << 1
	PRARP              = 1 << 2
	PReplyAck          = 1 << 3
	PNetMTU            = 1 << 4
	PConfig            = 1 << 9
	PInflightShmFD     = 1 << 12
	PResetDevice       = 1 << 13
	PConfigureMemSlots = 1 << 15
	PStatus            = 1 << 16
	PDeviceState       = 1 << 19
)

// AllProtocol are the protocol features that a front-end of this package can use.
const AllProtocol = PMQ | PLogShmFD | PRARP | PReplyAck | PNetMTU | PConfig | PInflightShmFD | PResetDevice | PConfigureMemSlots | PStatus | PDeviceState

// Flags of a message.
const (
	FlagVersion   = 1 // of the protocol: the only one
	FlagReply     = 4
	FlagNeedReply = 8
)

const (
	headerLen  = 12
	maxPayload = 4 << 10
	maxFDs     = 253 // as many as the kernel carries
)

// ErrRefused is returned for a request that was answered by an error.
var ErrRefused = errors.New("the back-end refuses")

// Message is one message of the back-end.
type Message struct {
	Request uint32 // its number
	Flags   uint32 // FlagVersion, FlagReply, FlagNeedReply
	Payload []byte // what comes behind the header
	FDs     []int  // open, and the receiver's
}

// U64 is the number in a payload of eight bytes, else zero.
func (m *Message) U64() uint64 {
	if len(m.Payload) != 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(m.Payload)
}

// Conn is a connection to a back-end, on which anything can be said.
type Conn struct {
	*net.UnixConn
	Timeout time.Duration // of each message; NewConn sets ten seconds
	// Turn, if set, is called before an answer is waited for: the turn of a back-end that
	// has no thread of its own.
	Turn func()
}

// Dial connects to the socket at path, and waits a while for one that is not there yet.
func Dial(path string) (*Conn, error) {
	var err error
	for range 500 {
		var c *net.UnixConn
		if c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"}); err == nil {
			return NewConn(c), nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EAGAIN) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, err
}

// NewConn takes over a connected socket.
func NewConn(c *net.UnixConn) *Conn { return &Conn{UnixConn: c, Timeout: 10 * time.Second} }

// FileConn is NewConn for a socket in a file, which it closes.
func FileConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%s is no UNIX socket", f.Name())
	}
	return NewConn(u), nil
}

// Pair returns the two ends of a connection: ours, and one for the back-end's --fd.
func Pair() (*Conn, *os.File, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	c, err := FileConn(os.NewFile(uintptr(p[0]), "front-end"))
	return c, os.NewFile(uintptr(p[1]), "back-end"), err
}

// Encode is a whole message. size is what its header says of the payload's length.
func Encode(request, flags, size uint32, payload []byte) []byte {
	b := make([]byte, headerLen, headerLen+len(payload))
	binary.LittleEndian.PutUint32(b, request)
	binary.LittleEndian.PutUint32(b[4:], flags)
	binary.LittleEndian.PutUint32(b[8:], size)
	return append(b, payload...)
}

// WriteRaw writes bytes, and with the first of them descriptors.
func (c *Conn) WriteRaw(b []byte, fds ...int) error {
	_ = c.SetWriteDeadline(time.Now().Add(c.Timeout))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// Send writes one message and waits for no answer.
func (c *Conn) Send(request, flags uint32, payload []byte, fds ...int) error {
	return c.WriteRaw(Encode(request, FlagVersion|flags, uint32(len(payload)), payload), fds...)
}

// Receive reads one message.
func (c *Conn) Receive() (*Message, error) {
	if c.Turn != nil {
		c.Turn()
	}
	_ = c.SetReadDeadline(time.Now().Add(c.Timeout))
	head, oob := make([]byte, headerLen), make([]byte, unix.CmsgSpace(4*maxFDs))
	n, k, _, _, err := c.ReadMsgUnix(head, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	m := &Message{}
	if msgs, err := unix.ParseSocketControlMessage(oob[:k]); err == nil {
		for _, msg := range msgs {
			if fds, err := unix.ParseUnixRights(&msg); err == nil {
				m.FDs = append(m.FDs, fds...)
			}
		}
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return nil, err
	}
	m.Request, m.Flags = binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[4:])
	size := binary.LittleEndian.Uint32(head[8:])
	if size > maxPayload {
		return nil, fmt.Errorf("reply to request %d: %d bytes", m.Request, size)
	}
	m.Payload = make([]byte, size)
	_, err = io.ReadFull(c, m.Payload)
	return m, err
}

// Ask sends a request that has a reply, and returns it.
func (c *Conn) Ask(request uint32, payload []byte, fds ...int) (*Message, error) {
	return c.exchange(request, 0, payload, fds...)
}

// Tell sends a request and waits for the back-end's word that it was done.
// Preconditions: PReplyAck is negotiated.
func (c *Conn) Tell(request uint32, payload []byte, fds ...int) error {
	m, err := c.exchange(request, FlagNeedReply, payload, fds...)
	if err != nil {
		return err
	}
	if len(m.Payload) != 8 || m.U64() != 0 {
		return fmt.Errorf("request %d: %w: %x", request, ErrRefused, m.Payload)
	}
	return nil
}

func (c *Conn) exchange(request, flags uint32, payload []byte, fds ...int) (*Message, error) {
	if err := c.Send(request, flags, payload, fds...); err != nil {
		return nil, fmt.Errorf("request %d: %w", request, err)
	}
	m, err := c.Receive()
	if err != nil {
		return nil, fmt.Errorf("reply to request %d: %w", request, err)
	}
	if m.Request != request || m.Flags&^FlagNeedReply != FlagVersion|FlagReply {
		return nil, fmt.Errorf("reply to request %d: request %d, flags %#x", request, m.Request, m.Flags)
	}
	return m, nil
}

// Ended tells whether the back-end closes the connection within d. What it still
// says before is thrown away.
func (c *Conn) Ended(d time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(d))
	b := make([]byte, 4096)
	for {
		if _, err := c.Read(b); err != nil {
			return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
		}
	}
}

// U64 is the payload that is one number.
func U64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// U32s is the payload of 32-bit numbers one behind the other, as an index of a
// ring and a number for it.
func U32s(v ...uint32) (b []byte) {
	for _, n := range v {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// VringAddr is the payload of SetVringAddr: addresses are those of the front-end.
func VringAddr(index, flags uint32, desc, used, avail, log uint64) []byte {
	b := U32s(index, flags)
	for _, v := range []uint64{desc, used, avail, log} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}
