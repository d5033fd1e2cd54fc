// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// maxMessages are taken by one call of Receive, and none that comes when it has taken
// maxTime: traffic goes on beside a front end that says much, or what costs much, such as
// memory that is to be mapped and unmapped.
const (
	maxMessages = 64
	maxTime     = 2 * time.Millisecond
)

// errRefused is answered to a request that is not done, where an answer is wanted.
// The connection goes on.
var errRefused = errors.New("refused")

// Session is a connection of a front end.
type Session struct {
	fd     int32
	dev    Device
	config Config
	err    error // once set, nothing is received any more

	// The message that is being received: buf[:have] of it is there.
	buf    [headerLen + maxPayload]byte
	have   int
	head   header
	fds    []int // that came with it; those taken are -1
	oob    []byte
	out    []byte // an answer
	warned uint64 // requests that Unknown was told of; the highest bit is for all above

	protocol uint64 // protocol features in force
	features uint64 // of virtio
	status   uint64 // of the device, as the front end has set it
	memory   []slot
	log      mapping
	inflight mapping
	queues   [MaxQueues]queue
}

// New begins a session on a connected, non-blocking UNIX stream socket, which stays
// the caller's.
func New(fd int32, c Config, dev Device) *Session {
	s := &Session{fd: fd, dev: dev, config: c, oob: make([]byte, unix.CmsgSpace(receivableFDs*bytesPerFD)),
		fds: make([]int, 0, receivableFDs), out: make([]byte, 0, headerLen+maxPayload)}
	if s.config.Remains == nil {
		s.config.Remains = new(Remains)
	}
	s.config.Remains.spend(int(unsafe.Sizeof(*s)) + 4*maxPayload)
	for i := range s.queues {
		s.queues[i] = queue{Queue: Queue{Kick: none, Call: none, Err: none}}
	}
	return s
}

// Queue is what is known of queue i, below MaxQueues.
func (s *Session) Queue(i int) *Queue { return &s.queues[i].Queue }

// Receive takes what messages there are, a bounded number of them: more says that
// there may be others. It is to be called when the socket is readable. An error
// wraps ErrClosed or ErrProtocol: the session is to be closed then.
// Preconditions: nothing of a mapping is in use.
func (s *Session) Receive() (more bool, err error) {
	begin := time.Now()
	for n := 0; ; n++ {
		whole, err := s.read()
		if err == nil && whole {
			if n == maxMessages || n > 0 && time.Since(begin) > maxTime {
				return true, nil
			}
			err = s.handle()
			s.have = 0
		}
		if err != nil {
			s.err = err
			s.dropFDs()
			return false, err
		}
		if !whole {
			return false, nil
		}
	}
}

// read goes on with the message that is under way. It reports true when that is
// complete.
func (s *Session) read() (bool, error) {
	if s.err != nil {
		return false, s.err
	}
	for {
		end := headerLen
		if s.have >= headerLen {
			end += int(s.head.size)
		}
		if s.have == end {
			return true, nil
		}
		n, err := s.receive(s.buf[s.have:end])
		if err != nil || n == 0 {
			return false, err
		}
		if s.have += n; s.have == headerLen {
			if err := s.head.decode(s.buf[:headerLen]); err != nil {
				return false, err
			}
		}
	}
}

// receive reads into b and takes the descriptors that come along. It returns zero
// where nothing is there.
func (s *Session) receive(b []byte) (int, error) {
	if s.config.Remains.full() {
		return 0, malformed("%d descriptors that came cannot be closed yet", maxWaiting)
	}
	n, oobn, flags, _, err := sock.Recvmsg(int(s.fd), b, s.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	switch {
	case err == unix.EINTR || err == unix.EAGAIN:
		return 0, nil // level-triggered: what is there is told again
	case err != nil:
		return 0, fmt.Errorf("%w: %v", ErrClosed, err)
	}
	s.takeFDs(s.oob[:oobn])
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		return 0, malformed("descriptors were lost: more came than may be open")
	case len(s.fds) > maxFDs:
		return 0, malformed("%d descriptors with one message, at most %d may come", len(s.fds), maxFDs)
	case n == 0:
		return 0, ErrClosed
	}
	return n, nil
}

// takeFDs notes the descriptors of control data, which the kernel has written. It
// passes up to receivableFDs, and closes more.
func (s *Session) takeFDs(oob []byte) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		if oob = rest; h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_RIGHTS {
			continue
		}
		for ; len(data) >= bytesPerFD; data = data[bytesPerFD:] {
			s.fds = append(s.fds, int(int32(u32(data))))
		}
	}
}

// handle does what the message asks for, and answers.
func (s *Session) handle() error {
	defer s.dropFDs()
	s.config.Remains.spend(messageCost)
	// That answers are acknowledged counts from the next message on.
	asked := s.protocol&protoReplyAck != 0 && s.head.flags&flagNeedReply != 0
	h := s.find()
	var err error
	switch size := int(s.head.size); {
	case h == nil:
		s.unknown()
		err = errRefused
	case size < h.min || size > h.max:
		err = malformed("payload of %d bytes", size)
	case len(s.fds) > h.fds:
		err = malformed("%d descriptors, at most %d belong there", len(s.fds), h.fds)
	default:
		err = h.do(s, s.buf[headerLen:headerLen+size])
	}
	switch {
	case err == errRefused && asked:
		return s.answer(1)
	case err == errRefused:
		return nil
	case err != nil && h != nil && !errors.Is(err, ErrClosed):
		return fmt.Errorf("%w (in %s)", err, h.name)
	case err == nil && asked && !h.answers:
		return s.answer(0)
	}
	return err
}

// find returns what there is to be done for the request, or nil where it is not
// known, or not to be sent with the protocol features in force.
func (s *Session) find() *handler {
	if s.head.request >= uint32(len(handlers)) {
		return nil
	}
	h := &handlers[s.head.request]
	if h.do == nil || h.needs&^s.protocol != 0 {
		return nil
	}
	return h
}

// unknown tells of a request that is not known, once.
func (s *Session) unknown() {
	bit := uint64(1) << min(s.head.request, 63)
	if s.warned&bit == 0 {
		s.warned |= bit
		s.dev.Unknown(s.head.request)
	}
}

// answer is reply with a number.
func (s *Session) answer(v uint64) error {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], v)
	return s.reply(b[:])
}

// reply answers the message.
func (s *Session) reply(payload []byte) error {
	b := s.head.encode(s.out, payload)
	for {
		n, err := unix.Write(int(s.fd), b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN || err == nil && n < len(b):
			return malformed("the front end asks and does not read the answers")
		case err != nil:
			return fmt.Errorf("%w: %v", ErrClosed, err)
		}
		return nil
	}
}

// takeFD hands over the only descriptor of a message, which is the caller's to close then,
// or -1 if there is none.
func (s *Session) takeFD() int {
	if len(s.fds) == 0 {
		return none
	}
	fd := s.fds[0]
	s.fds[0] = none
	return fd
}

// dropFDs closes the descriptors that nobody has taken.
func (s *Session) dropFDs() {
	for _, fd := range s.fds {
		s.config.Remains.discard(fd)
	}
	s.fds = s.fds[:0]
}

// Close ends all rings, tells the device that there is neither memory nor log any
// more, and gives back everything but the socket.
// Preconditions: nothing of a mapping is in use.
func (s *Session) Close() {
	if s.err == nil {
		s.err = ErrClosed
	}
	s.dropFDs()
	for i := range s.queues {
		s.stop(i)
		s.forget(i)
	}
	s.dev.SetLog(Log{})
	s.log.unmap()
	s.dev.SetInflight(Inflight{})
	s.inflight.unmap()
	_ = s.dev.SetMemory(nil)
	unmap(s.memory)
	s.memory = nil
}
