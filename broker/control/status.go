// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
)

// Instance is what answers are made of.
type Instance interface {
	// Status says what the instance is and how it fares.
	Status() api.StatusReply
	// SetLogLevel changes what the log shows.
	SetLogLevel(level string) error
	// Rules are those of where the guest may connect, in the order in which they are
	// asked.
	Rules() []api.Rule
	// Why explains what would become of a connection of the guest's, without making it.
	Why(*api.Target) ([]api.Step, error)
	// Forwards are the port rules in force.
	Forwards() []api.PortRule
	// Forward changes them, all that is asked for or nothing.
	Forward(*api.ForwardSpec) error
	// Load changes the egress rules, all that is asked for or nothing.
	Load(*api.LoadSpec) (*api.LoadReply, error)
	// Capture begins a capture of the guest's link, and returns the pipe that it comes
	// out of, which is the caller's, and what ends it.
	Capture(spec *api.CaptureSpec) (pipe int, end func(), err error)
	// Flows are the flows that there are, some at a time. An error is the last.
	Flows(context.Context) iter.Seq2[[]api.Flow, error]
	// Counters are all that is counted.
	Counters(context.Context) api.CountersReply
}

// handler answers one command.
type handler struct {
	// changes is set where something changes: refused but by --control.
	changes bool
	// lasts is set where the client decides when it ends, by closing. Then the context
	// ends. Other handlers have a bounded time.
	lasts bool
	// run answers. An error is told to the client.
	run func(ctx context.Context, in Instance, r *api.Request, c *Client) error
}

// handlers has one for each command.
var handlers = map[string]handler{
	api.Status:   {run: answerStatus},
	api.LogLevel: {run: answerLogLevel, changes: true},
	api.Rules:    {run: answerRules},
	api.Why:      {run: answerWhy},
	api.Forwards: {run: answerForwards},
	api.Forward:  {run: answerForward, changes: true},
	api.Load:     {run: answerLoad, changes: true},
	api.Capture:  {run: answerCapture, lasts: true},
	api.Flows:    {run: answerFlows},
	api.Counters: {run: answerCounters},
}

func answerStatus(_ context.Context, in Instance, _ *api.Request, c *Client) error {
	s := in.Status()
	s.Control = c.Changes
	return c.Reply(&api.Reply{Status: &s})
}

func answerLogLevel(_ context.Context, in Instance, r *api.Request, c *Client) error {
	if err := in.SetLogLevel(r.Level); err != nil {
		return err
	}
	return c.Reply(&api.Reply{})
}

// Bounds on clients.
const (
	// maxClients is how many there may be at a time. One more takes the place of the
	// one that has waited longest without saying what it wants.
	maxClients = 16
	// answerTime is how long an answer may take altogether, where the client does not
	// decide that.
	answerTime = 30 * time.Second
)

// Status is the server of our own protocol, on one or two sockets: that which every
// instance has and that shows everything, and that of --control, by which things are
// changed.
type Status struct {
	o        StatusOptions
	gates    []*gate
	changing *gate // among them, nil: none
	remover  *remover
	patience time.Duration

	mu      sync.Mutex
	clients int
	waiting []*Client // that have not said yet what they want, the oldest first
}

// StatusOptions says who may connect.
type StatusOptions struct {
	Users []uint32 // besides root
	// Guest is set where the guest is processes of this system, see Options.
	Guest  bool
	Logger *slog.Logger // required
}

// NewStatus makes the server, which listens nowhere yet.
func NewStatus(o StatusOptions) *Status { return &Status{o: o, patience: patience} }

// ListenDefault makes the socket that every instance has, named by its process number.
// Clients see as its owner who the process is at this moment.
func (s *Status) ListenDefault(pid int) (name string, err error) {
	fd, name, err := bindAbstract(pid)
	if err != nil {
		return "", err
	}
	g := newGate(fd, name, s.o.Users, s.o.Logger)
	if s.o.Guest {
		// Where the kernel does not tell, the name alone keeps the guest out: it is one
		// of our network namespace.
		_ = g.guarded(fd)
	}
	s.gates = append(s.gates, g)
	return name, nil
}

// ListenControl makes the socket of --control, before the process is confined. It is
// removed when this process ends, as that of Listen.
func (s *Status) ListenControl(path string) error {
	fd, r, err := bind(path, "--control")
	if err != nil {
		return err
	}
	g := newGate(fd, path, s.o.Users, s.o.Logger)
	s.remover, s.changing, s.gates = r, g, append(s.gates, g)
	if s.o.Guest {
		if err := g.guarded(fd); err != nil {
			s.Close()
			return blind("--control", err)
		}
	}
	return nil
}

// Close ends the server and removes what it has made.
func (s *Status) Close() {
	for _, g := range s.gates {
		g.listener.Close()
	}
	if s.remover != nil {
		s.remover.remove()
	}
}

// Serve has clients served from now on, until Close.
func (s *Status) Serve(in Instance) {
	for _, g := range s.gates {
		go func() {
			for {
				v, ok := g.next()
				if !ok {
					return
				}
				s.welcome(v, g == s.changing, in)
			}
		}()
	}
}

// welcome serves a client beside the others, if there is room for one.
func (s *Status) welcome(v visitor, changes bool, in Instance) {
	c := &Client{Changes: changes, Who: v.who, file: os.NewFile(uintptr(v.fd), "client"), patience: s.patience}
	_ = c.file.SetReadDeadline(time.Now().Add(s.patience))
	if !s.admit(c) {
		_ = c.Reply(&api.Reply{Error: fmt.Sprintf("%d clients are being served, which is as many as there may be (try again later)", maxClients)})
		c.close()
		return
	}
	go func() {
		s.serve(c, in)
		c.close()
		s.leave(c)
	}()
}

// admit counts a client in.
func (s *Status) admit(c *Client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients >= maxClients {
		if len(s.waiting) == 0 {
			return false
		}
		oldest := s.waiting[0]
		s.waiting = s.waiting[1:]
		oldest.out = true
		_ = oldest.file.SetDeadline(time.Unix(1, 0)) // it ends by itself
		s.clients--
	}
	s.clients++
	s.waiting = append(s.waiting, c)
	return true
}

// asked notes that a client has said what it wants. It reports false if another one has
// taken its place.
func (s *Status) asked(c *Client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, c); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	return !c.out
}

// leave counts a client out.
func (s *Status) leave(c *Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, c); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	if !c.out {
		s.clients--
	}
}

// serve has one client answered.
func (s *Status) serve(c *Client, in Instance) {
	r, err := c.request()
	if !s.asked(c) {
		return
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("no request within %v", c.patience)
	case err == nil:
		err = s.answer(r, c, in)
	}
	if err != nil && err != errGone && !errors.Is(err, unix.ECONNRESET) {
		_ = c.Reply(refusal(err))
	}
}

// answer has a request answered by its handler.
func (s *Status) answer(r *api.Request, c *Client, in Instance) error {
	h, ok := handlers[r.Command]
	switch {
	case !ok:
		return fmt.Errorf("this version of aldente has no command %.40q", r.Command)
	case h.changes && !c.Changes:
		return errors.New("this socket shows and changes nothing (start the instance with --control PATH and use that socket)")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if h.lasts {
		go func() {
			c.awaitEnd()
			cancel()
		}()
	} else {
		c.until = time.Now().Add(answerTime)
		var end context.CancelFunc
		ctx, end = context.WithDeadline(ctx, c.until)
		defer end()
	}
	err := h.run(ctx, in, r, c)
	if h.changes && err == nil {
		s.o.Logger.Info("changed by a client", "command", r.Command, "client", c.Who)
	}
	return err
}
