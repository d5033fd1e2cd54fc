// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
)

// Bounds of a capture.
const (
	// capturePipe is the size of the pipe that is asked for, in bytes: as much as any
	// user may have.
	capturePipe = 1 << 20
	// lastWords is how long the worker may take to write what it has left.
	lastWords = 2 * time.Second
)

// capture shows the frames of the guest's link as they come.
func capture(c *call) error {
	spec, err := c.captureSpec()
	if err != nil {
		return err
	}
	count, err := c.number("count", 1<<63-1)
	if err != nil {
		return err
	}
	path := c.given["write"]
	if err := c.noTerminal(path); err != nil {
		return err
	}
	s, err := c.connect()
	if err != nil {
		return err
	}
	defer s.Close()
	pipe, err := s.pipe(&api.Request{Command: api.Capture, Capture: spec})
	if err != nil {
		return err
	}
	defer pipe.Close()
	out, closeOut := c.raw, func() error { return nil }
	if path != "" && path != "-" { // not before there is something to write: it may hold an earlier one
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		out, closeOut = f, f.Close
	}
	stopped := s.endBySignal(pipe)
	w := &captureWriter{out: bufio.NewWriterSize(out, capturePipe), json: c.has(flagJSON.long), most: uint64(count)}
	err = w.copy(pipe)
	err = cmp.Or(err, w.out.Flush(), closeOut())
	fmt.Fprintf(c.errs, "%d frames captured, %d left out\n", w.frames, w.lost)
	if err != nil || w.enough() {
		return err
	}
	select {
	case <-stopped:
		return nil
	default:
		return s.why()
	}
}

// endBySignal has SIGINT and SIGTERM end a capture in order: the instance is told that
// no more is wanted, the worker writes what it has, and how many frames there were. The
// next signal ends this process. What is returned is closed by the first.
func (s *session) endBySignal(pipe *os.File) <-chan struct{} {
	signals, stopped := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		close(stopped)
		signal.Stop(signals)
		_ = s.conn.CloseWrite()
		_ = pipe.SetReadDeadline(time.Now().Add(lastWords))
	}()
	return stopped
}

// why tells why a capture has ended by itself. It is no error that the instance has
// ended: there was no more to be captured.
func (s *session) why() error {
	_ = s.conn.SetReadDeadline(time.Now().Add(lastWords))
	if _, err := s.in.ReadByte(); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the instance's worker has ended, and the capture with it (start the capture again)")
	}
	return nil
}

// noTerminal keeps the stream from a terminal.
func (c *call) noTerminal(path string) error {
	f, ok := c.raw.(*os.File)
	if !ok || path != "" && path != "-" || c.has(flagJSON.long) {
		return nil
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil
	}
	return c.wrong("a capture is not for a terminal: give -w FILE or --json, or append \"| wireshark -k -i -\"")
}

// number is a flag's value, zero without it.
func (c *call) number(flag string, most int64) (int64, error) {
	text, ok := c.given[flag]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > most {
		return 0, c.wrong("--%s %s is no number from 1 to %d", flag, text, most)
	}
	return n, nil
}

// captureSpec is what flags and the filter ask for.
func (c *call) captureSpec() (*api.CaptureSpec, error) {
	snap, err := c.number("snap", 1<<20)
	if err != nil {
		return nil, err
	}
	spec := &api.CaptureSpec{Snap: uint32(snap), Drops: c.has("drops")}
	for words := c.args; len(words) > 0; {
		word, value := words[0], ""
		words = words[1:]
		if word == "host" || word == "port" {
			if len(words) == 0 {
				return nil, c.wrong("'%s' needs something behind it", word)
			}
			value, words = words[0], words[1:]
		}
		switch word {
		case "tcp", "udp", "icmp", "arp":
			if spec.Protocol != "" {
				return nil, c.wrong("nothing is of protocol %s and %s", spec.Protocol, word)
			}
			spec.Protocol = word
		case "host":
			a, err := netip.ParseAddr(value)
			if err != nil || a.Zone() != "" || spec.Address != "" {
				return nil, c.wrong("'host' takes one IP address, not '%s'", value)
			}
			spec.Address = a.Unmap().String()
		case "port":
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil || n == 0 || spec.Port != 0 {
				return nil, c.wrong("'port' takes one number from 1 to 65535, not '%s'", value)
			}
			spec.Port = uint16(n)
		case "and":
		default:
			return nil, c.wrong("there is nothing that '%s' could mean in a filter (tcp, udp, icmp or arp, host ADDRESS, port NUMBER)", word)
		}
	}
	return spec, nil
}

// pipe sends a request whose reply brings a pipe, and returns the pipe.
func (s *session) pipe(r *api.Request) (*os.File, error) {
	if err := s.ask(r); err != nil {
		return nil, err
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(s.time))
	line, oob, fd := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(4*2)), -1
	n, oobn, _, _, err := s.conn.ReadMsgUnix(line, oob)
	if err == nil && oobn > 0 {
		fd = oneDescriptor(oob[:oobn])
	}
	if err != nil || n == 0 {
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			err = errors.New("it does not speak to this process")
		}
		return nil, cause(err)
	}
	// What follows of the line has no descriptor.
	_, err = readReply(bufio.NewReader(io.MultiReader(bytes.NewReader(line[:n]), s.in)))
	if err == nil && !isPipe(fd) {
		err = errNoAnswer
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	s.lasts()
	_ = unix.SetNonblock(fd, true)
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, capturePipe)
	return os.NewFile(uintptr(fd), "capture"), nil
}

// oneDescriptor is what came with a message, -1 if that was not exactly one.
func oneDescriptor(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	var all []int
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			all = append(all, fds...)
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	for _, fd := range all {
		unix.Close(fd)
	}
	return -1
}

// isPipe tells whether a descriptor is one to read a pipe from: whoever has taken an
// instance's name may send any other.
func isPipe(fd int) bool {
	var st unix.Stat_t
	if fd < 0 || unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY
}

// captureWriter writes a capture, as it is or as a line of JSON for each frame.
type captureWriter struct {
	out    *bufio.Writer
	json   bool
	most   uint64 // frames, zero: any number
	frames uint64
	lost   uint64
}

func (w *captureWriter) enough() bool { return w.most > 0 && w.frames == w.most }

// copy writes until the stream ends or there are enough frames. What is read of a pipe
// is not kept while the next has to be waited for.
func (w *captureWriter) copy(pipe io.Reader) error {
	in := bufio.NewReaderSize(pipe, capturePipe)
	r := &blockReader{in: in}
	for !w.enough() {
		if in.Buffered() == 0 {
			if err := w.out.Flush(); err != nil {
				return err
			}
		}
		b, err := r.next()
		switch {
		case err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("the capture: %w", err)
		}
		f, err := r.frame(b)
		if err != nil {
			return fmt.Errorf("the capture: %w", err)
		}
		if f != nil {
			w.frames++
		}
		w.lost = r.lost
		if err := w.write(b, f); err != nil {
			return err
		}
	}
	return nil
}

func (w *captureWriter) write(block []byte, f *shownFrame) error {
	if !w.json {
		_, err := w.out.Write(block)
		return err
	}
	if f == nil {
		return nil
	}
	line, err := json.Marshal(f)
	if err == nil {
		_, err = w.out.WriteString(escapeJSON(string(line)) + "\n")
	}
	return err
}

// shownFrame is a frame as --json shows it.
type shownFrame struct {
	Time      time.Time `json:"time"`
	Direction string    `json:"direction"` // out, in: as the guest sees it
	Length    uint32    `json:"length"`
	LeftOut   uint64    `json:"left_out,omitempty"` // frames before this one
	Comment   string    `json:"comment,omitempty"`
	Bytes     hexBytes  `json:"bytes"` // as many as were asked for
}

// hexBytes are shown in hexadecimal.
type hexBytes []byte

// MarshalText implements encoding.TextMarshaler.
func (b hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, b), nil }
