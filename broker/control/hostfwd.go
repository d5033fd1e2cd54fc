// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"io"
	"os"
	"time"

	"aldente/broker/control/hostfwd"
)

// mostHostfwd is how many clients of slirp4netns's API are served beside each other.
const mostHostfwd = 16

// Hostfwds are the ports that clients of slirp4netns's API forward. Methods may be called
// at the same time.
type Hostfwds interface {
	// Add forwards a port and returns the number that it is known by.
	Add(*hostfwd.Request) (id int, err error)
	// Remove ends that, and reports false if there is none of that number.
	Remove(id int) bool
	// List returns all, by number.
	List() []hostfwd.Forward
}

// Hostfwd is the server of slirp4netns's API: a request, an answer, and the connection
// is closed.
type Hostfwd struct {
	*gate
	remover  *remover
	patience time.Duration
}

// ListenHostfwd binds the socket, see Listen.
func ListenHostfwd(o Options) (*Hostfwd, error) {
	fd, r, err := bind(o.Path, "-a")
	if err != nil {
		return nil, err
	}
	s := &Hostfwd{gate: newGate(fd, o.Path, o.Users, o.Logger), remover: r, patience: patience}
	if o.Guest {
		if err = s.guarded(fd); err != nil {
			s.Close()
			return nil, blind("-a", err)
		}
	}
	return s, nil
}

// Close ends the server and removes its socket, which otherwise happens when this
// process ends.
func (s *Hostfwd) Close() {
	s.listener.Close()
	s.remover.remove()
}

// Serve answers clients, until Close. One that says nothing does not keep others
// waiting, as long as there are few of them.
func (s *Hostfwd) Serve(to Hostfwds) {
	places := make(chan struct{}, mostHostfwd)
	for {
		v, ok := s.next()
		if !ok {
			return
		}
		places <- struct{}{}
		go func() {
			client := os.NewFile(uintptr(v.fd), "API client")
			s.serve(client, to)
			client.Close()
			<-places
		}()
	}
}

func (s *Hostfwd) serve(client *os.File, to Hostfwds) {
	if err := client.SetDeadline(time.Now().Add(s.patience)); err != nil {
		s.log.Error("API socket", "error", err)
		return
	}
	r, err := readHostfwd(client)
	var answer []byte
	if bad := hostfwd.BadRequest(""); errors.As(err, &bad) {
		answer = hostfwd.Failed(bad)
	} else if err != nil {
		return // it has gone
	} else {
		answer = s.carryOut(r, to)
	}
	// Binding may have taken long.
	_ = client.SetDeadline(time.Now().Add(s.patience))
	_, _ = client.Write(answer)
}

// readHostfwd reads a request. It is over when it is complete, when the client shuts down
// what it says, or says nothing more for long.
func readHostfwd(client *os.File) (*hostfwd.Request, error) {
	b := make([]byte, 0, hostfwd.MaxRequest)
	for {
		n, err := client.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		ended := err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !ended {
			return nil, err
		}
		r, err := hostfwd.Parse(b, ended)
		if err != hostfwd.ErrMore {
			return r, err
		}
	}
}

func (s *Hostfwd) carryOut(r *hostfwd.Request, to Hostfwds) []byte {
	switch r.Command {
	case hostfwd.List:
		return hostfwd.Entries(to.List())
	case hostfwd.Remove:
		if !to.Remove(r.ID) {
			return hostfwd.Failed(hostfwd.NoSuchID)
		}
		return hostfwd.Removed()
	}
	id, err := to.Add(r)
	if err != nil {
		// The client's words have no room for why.
		s.log.Warn("port is not forwarded", "error", err)
		return hostfwd.Failed(hostfwd.AddFailed)
	}
	return hostfwd.Added(id)
}
