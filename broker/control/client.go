// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/ipc/sock"
)

// Client is one client of the status socket, or of that of --control.
type Client struct {
	// Changes tells whether it may change something.
	Changes bool
	// Who it is, for the log.
	Who string

	file     *os.File
	patience time.Duration
	until    time.Time // no answer after that; zero: whenever
	out      bool      // another has taken its place
}

func (c *Client) close() { c.file.Close() }

// Reply sends a reply, or a part of one. A client that does not read it in time has
// gone: the handler then returns the error.
func (c *Client) Reply(r *api.Reply) error { return c.send(r, c.file.Write) }

// ReplyWith is Reply with a descriptor, of which the client gets its own.
func (c *Client) ReplyWith(r *api.Reply, fd int) error {
	return c.send(r, func(line []byte) (n int, err error) {
		conn, err := c.file.SyscallConn()
		if err != nil {
			return 0, err
		}
		if e := conn.Write(func(to uintptr) bool {
			for {
				n, err = sock.SendmsgN(int(to), line, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		}); e != nil {
			return 0, e
		}
		if err == nil && n < len(line) {
			n, err = c.file.Write(line[n:])
		}
		return n, err
	})
}

func (c *Client) send(r *api.Reply, write func(line []byte) (int, error)) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	end := time.Now().Add(c.patience)
	if !c.until.IsZero() && c.until.Before(end) {
		end = c.until
	}
	if err := c.file.SetWriteDeadline(end); err != nil {
		return errGone
	}
	if _, err := write(append(line, '\n')); err != nil {
		return errGone
	}
	return nil
}

// errGone is that nobody is there to be told of an error.
var errGone = errors.New("the client is gone")

// awaitEnd returns when the client is gone: it says nothing more after its request.
func (c *Client) awaitEnd() {
	_ = c.file.SetReadDeadline(time.Time{})
	_, _ = c.file.Read(make([]byte, 1))
}

// request reads what the client wants. Descriptors that come with it the kernel closes,
// since nobody takes them.
func (c *Client) request() (*api.Request, error) {
	most := api.MaxRequest
	if c.Changes {
		most = api.MaxLoad
	}
	var line []byte
	for {
		line = append(line, make([]byte, max(512, len(line)))...)[:len(line)]
		n, err := c.file.Read(line[len(line):min(cap(line), most+1)])
		if err != nil && err != io.EOF {
			return nil, err
		}
		line = line[:len(line)+n]
		if end := bytes.IndexByte(line[len(line)-n:], '\n'); end >= 0 {
			end += len(line) - n
			if end != len(line)-1 {
				return nil, errors.New("more than one request")
			}
			return decodeRequest(line)
		}
		if len(line) > most {
			return nil, fmt.Errorf("a request of more than %d bytes", most)
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
	}
}

// decodeRequest decodes a request and looks whether it is one that this version knows.
func decodeRequest(line []byte) (*api.Request, error) {
	r := &api.Request{}
	if err := json.Unmarshal(line, r); err != nil {
		return nil, fmt.Errorf("no request: %w", err)
	}
	if r.Version < 1 || r.Version > api.Version {
		return nil, fmt.Errorf("this instance speaks version %d, the client version %d (use the client of the instance's version)", api.Version, r.Version)
	}
	return r, nil
}
