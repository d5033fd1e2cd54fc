// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// Bounds on what instances, or whoever has taken their names, may cost.
const (
	answerTime = 10 * time.Second // for a reply
	probeTime  = 2 * time.Second  // the same, where many are asked
	mostNames  = 4096             // sockets that are looked at
	atATime    = 32               // instances that are asked at a time
)

// socketTable lists the UNIX sockets of this network namespace.
const socketTable = "/proc/net/unix"

// socketName is how a status socket's line ends there.
var socketName = regexp.MustCompile(`^@` + api.Prefix + `[0-9]{1,10}(-[0-9]{1,2})?$`)

// names returns the names of status sockets that somebody listens on. Anybody may make
// sockets of such names, and lines that look as if there were one.
func names(table io.Reader) (all []string) {
	b := bufio.NewReader(table)
	for len(all) < mostNames {
		raw, err := b.ReadSlice('\n')
		for err == bufio.ErrBufferFull {
			_, err = b.ReadSlice('\n')
			raw = nil
		}
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(string(raw))
		if len(f) == 8 && socketName.MatchString(f[7]) && !slices.Contains(all, f[7]) {
			if flags, err := strconv.ParseUint(f[3], 16, 32); err == nil && flags&acceptsConnections != 0 {
				all = append(all, f[7])
			}
		}
		if err != nil {
			break
		}
	}
	return all
}

// acceptsConnections is __SO_ACCEPTCON of include/uapi/linux/net.h.
const acceptsConnections = 1 << 16

// session is a connection to an instance.
type session struct {
	conn *net.UnixConn
	in   *bufio.Reader
	path string // of the socket; "@" and a name: abstract
	pid  int    // the instance's, as this process numbers it
	peer int32  // the same, as the kernel knows it: zero where this process has no number for it
	uid  int
	time time.Duration // for a reply
}

func (s *session) Close() { s.conn.Close() }

// errStranger is that a socket is another user's.
var errStranger = errors.New("the socket is another user's")

// connect connects to a socket, and looks whose it is before a word is said.
func connect(path string, patience time.Duration) (*session, error) {
	c, err := dialFor(path, patience)
	if err != nil {
		return nil, cause(err)
	}
	s := &session{conn: c.(*net.UnixConn), in: bufio.NewReader(c), path: path, time: patience}
	cred, err := peer(s.conn)
	if err == nil && int(cred.Uid) != os.Geteuid() && cred.Uid != 0 && os.Geteuid() != 0 {
		err = errStranger
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	s.pid, s.peer, s.uid = int(cred.Pid), cred.Pid, int(cred.Uid)
	if s.pid == 0 { // of a PID namespace that is not ours
		number, _, _ := strings.Cut(strings.TrimPrefix(path, "@"+api.Prefix), "-")
		s.pid, _ = strconv.Atoi(number)
	}
	return s, nil
}

// peer says who listens at the other end.
func peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return nil, e
	}
	return cred, err
}

// ask sends a request.
func (s *session) ask(r *api.Request) error {
	r.Version = api.Version
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.time))
	if _, err := s.conn.Write(append(line, '\n')); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return cause(err) // others may have said why
	}
	return nil
}

// next returns the next reply, io.EOF after the last. What the instance refuses is an
// error.
func (s *session) next() (*api.Reply, error) {
	if s.time > 0 {
		_ = s.conn.SetReadDeadline(time.Now().Add(s.time))
	}
	return readReply(s.in)
}

// lasts lets replies come whenever they come.
func (s *session) lasts() {
	s.time = 0
	_ = s.conn.SetDeadline(time.Time{})
}

// readReply reads and decodes one line.
func readReply(in *bufio.Reader) (*api.Reply, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > api.MaxReply:
			return nil, fmt.Errorf("an answer of more than %d bytes", api.MaxReply)
		case err == bufio.ErrBufferFull:
			continue
		case err == io.EOF && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, errors.New("no answer in time")
		case err != nil:
			return nil, err
		}
		break
	}
	r := &api.Reply{}
	if err := json.Unmarshal(bytes.TrimSpace(line), r); err != nil {
		return nil, fmt.Errorf("no answer of an instance: %w", err)
	}
	switch {
	case len(r.Problems) > 0:
		return nil, problems{r.Problems, r.Error}
	case r.Error != "":
		return nil, watch.Refusal(cell(r.Error))
	}
	return r, nil
}

// first is the reply to a request that has one.
func (s *session) first(r *api.Request) (*api.Reply, error) {
	if err := s.ask(r); err != nil {
		return nil, err
	}
	reply, err := s.next()
	if err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
		err = errors.New("it does not speak to this process (only its own user and root may look at it, in the network namespace that it was started in, not in its guest)")
	}
	return reply, err
}

// running is an instance that lets itself be looked at.
type running struct {
	path   string
	pid    int
	peer   int32
	uid    int
	status *api.StatusReply
}

// instances asks all that this user may look at, and returns them by their numbers.
// Others are how many more there are.
func instances() (all []running, others int, err error) {
	table, err := os.Open(socketTable)
	if err != nil {
		return nil, 0, err
	}
	defer table.Close()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		busy []string // they have as many clients waiting as may
		room = make(chan struct{}, atATime)
	)
	ask := func(path string, wait time.Duration) {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			r, err := probe(path, wait)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				all = append(all, *r)
			case wait == 0 && errors.Is(err, syscall.EAGAIN):
				busy = append(busy, path)
			default:
				others++
			}
		})
	}
	for _, path := range names(table) {
		ask(path, 0)
	}
	wg.Wait()
	// Whoever fills sockets of these names has others wait no longer than this.
	for _, path := range busy[:min(len(busy), atATime)] {
		ask(path, probeTime)
	}
	wg.Wait()
	others += max(len(busy)-atATime, 0)
	slices.SortFunc(all, func(a, b running) int { return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.path, b.path)) })
	return all, others, nil
}

// probe asks one, and waits for its turn to be a client that long.
func probe(path string, wait time.Duration) (*running, error) {
	s, err := connect(path, wait)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	s.time = probeTime
	r, err := s.first(&api.Request{Command: api.Status})
	if err != nil {
		return nil, err
	}
	if r.Status == nil {
		return nil, errNoAnswer
	}
	return &running{path, s.pid, s.peer, s.uid, r.Status}, nil
}

var errNoAnswer = errors.New("it has answered something else")

// choose finds the instance that a command is about.
func (c *call) choose() (*running, error) {
	if path := c.given[flagSocket.long]; path != "" {
		r, err := probe(path, probeTime)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return r, nil
	}
	all, others, err := instances()
	if err != nil {
		return nil, err
	}
	if text, ok := c.given[flagPID.long]; ok {
		pid, err := strconv.Atoi(text)
		if err != nil || pid < 1 {
			return nil, c.wrong("--pid %s is no process number", text)
		}
		all = slices.DeleteFunc(all, func(r running) bool { return r.pid != pid })
		if len(all) == 0 {
			return nil, fmt.Errorf("process %d is no instance that this user may look at (\"%s list\" shows those; --control none has no socket)", pid, c.program)
		}
	}
	switch len(all) {
	case 0:
		none := "no instance runs that this user may look at, in this network namespace"
		if others > 0 {
			none += fmt.Sprintf(" (%d more are other users', or of user namespaces that do not know this one: ask as the user that they were started by)", others)
		}
		return nil, errors.New(none)
	case 1:
		return &all[0], nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d instances run: choose one by --pid or --socket", len(all))
	for i := range all {
		fmt.Fprintf(&b, "\n  --pid %d  %s, %s", all[i].pid, cell(all[i].status.Personality), cell(all[i].status.Guest))
	}
	return nil, errors.New(b.String())
}

// connect connects to the instance that the command is about.
func (c *call) connect() (*session, error) {
	r, err := c.choose()
	if err != nil {
		return nil, err
	}
	return connect(r.path, answerTime)
}

// connectToChange is connect where something is to change.
func (c *call) connectToChange() (*session, error) {
	r, err := c.choose()
	if err != nil {
		return nil, err
	}
	path := r.path
	if !r.status.Control {
		if path = r.status.ControlPath; path == "" || path[0] != '/' {
			return nil, fmt.Errorf("process %d changes nothing while it runs (it was started without --control PATH)", r.pid)
		}
	}
	s, err := connect(path, answerTime)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Who it is has said where: nobody else is to get what is meant for it. Processes of
	// PID namespaces that are not ours have no number here, but a user.
	if s.peer != r.peer || s.peer == 0 && s.uid != r.uid {
		s.Close()
		return nil, fmt.Errorf("%s is not the socket of process %d", path, r.pid)
	}
	return s, nil
}

// only is the one reply to a request, of the instance that the command is about.
func (c *call) only(r *api.Request) (*api.Reply, error) {
	s, err := c.connect()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.first(r)
}
