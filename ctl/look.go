// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// mostBusy is how many sockets are taken for instances of which nobody could see whose
// they are, since as many wait for them as may.
const mostBusy = 16

// looked is an instance that is looked at time after time. Each question is a
// connection of its own.
type looked struct {
	path string
	pid  int // zero: not known
	uid  int
}

// Name is what the socket's name says of the process.
func (l looked) Name() string { return watch.Text(strings.TrimPrefix(l.path, "@"+api.Prefix)) }

// Ask is watch.Instance's.
func (l looked) Ask(ctx context.Context, req api.Request, each func(*api.Reply) error) error {
	err := l.ask(ctx, req, each)
	if ctx.Err() != nil {
		return errors.New("no answer in time")
	}
	return err
}

func (l looked) ask(ctx context.Context, req api.Request, each func(*api.Reply) error) error {
	s, err := connect(l.path, probeTime)
	if err != nil {
		return err
	}
	defer s.Close()
	s.time = answerTime
	// The end of the context ends whatever the session waits for.
	defer context.AfterFunc(ctx, func() { s.Close() })()
	reply, err := s.first(&req)
	for ; err == nil; reply, err = s.next() {
		if err := each(reply); err != nil {
			return err
		}
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// find lists the instances that this user may look at, see byTurns, and asks them
// nothing: one that does not answer is one, too.
func find(ctx context.Context) ([]watch.Instance, error) {
	table, err := os.Open(socketTable)
	if err != nil {
		return nil, err
	}
	defer table.Close()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		all  []looked
		busy []looked
		room = make(chan struct{}, atATime)
	)
	for _, path := range names(table) {
		if ctx.Err() != nil {
			break
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			s, err := connect(path, 0)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				all = append(all, looked{path, s.pid, s.uid})
				s.Close()
			case errors.Is(err, syscall.EAGAIN):
				busy = append(busy, looked{path, number(path), 0})
			}
		})
	}
	wg.Wait()
	for _, list := range [][]looked{all, busy} {
		slices.SortFunc(list, func(a, b looked) int { return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.path, b.path)) })
	}
	found := make([]watch.Instance, 0, len(all))
	for _, l := range append(byTurns(all), busy[:min(len(busy), mostBusy)]...) {
		found = append(found, l)
	}
	return found, nil
}

// byTurns puts the first instance of each user before the second of any, by their
// numbers. Only so many are asked at a time, and only for so long: a user who makes many
// sockets that do not answer keeps those of others waiting no longer than for one.
func byTurns(all []looked) []looked {
	turn, had := map[string]int{}, map[int]int{}
	for _, l := range all {
		turn[l.path] = had[l.uid]
		had[l.uid]++
	}
	slices.SortStableFunc(all, func(a, b looked) int { return cmp.Compare(turn[a.path], turn[b.path]) })
	return all
}

// number is the process number that a socket's name says.
func number(path string) int {
	text, _, _ := strings.Cut(strings.TrimPrefix(path, "@"+api.Prefix), "-")
	n, _ := strconv.Atoi(text)
	return n
}

// lister is find, or only the instance that --pid or --socket names.
func (c *call) lister() (watch.Lister, error) {
	if path := c.given[flagSocket.long]; path != "" {
		return func(context.Context) ([]watch.Instance, error) { return []watch.Instance{looked{path: path}}, nil }, nil
	}
	text, ok := c.given[flagPID.long]
	if !ok {
		return find, nil
	}
	pid, err := strconv.Atoi(text)
	if err != nil || pid < 1 {
		return nil, c.wrong("--pid %s is no process number", text)
	}
	return func(ctx context.Context) ([]watch.Instance, error) {
		all, err := find(ctx)
		return slices.DeleteFunc(all, func(in watch.Instance) bool { return in.(looked).pid != pid }), err
	}, nil
}

// one is the instance that the command is about.
func (c *call) one() (looked, error) {
	r, err := c.choose()
	if err != nil {
		return looked{}, err
	}
	return looked{path: r.path, pid: r.pid}, nil
}

// within reads a number that was given as a flag, or returns the usual one.
func (c *call) within(f flag, usual, least, most float64) (float64, error) {
	text, ok := c.given[f.long]
	if !ok {
		return usual, nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !(v >= least && v <= most) {
		return 0, c.wrong("--%s takes a number from %v to %v, not '%s'", f.long, least, most, text)
	}
	return v, nil
}

// oneOf checks that a flag's value is one of those it may have.
func (c *call) oneOf(f flag) error {
	if v, ok := c.given[f.long]; ok && !slices.Contains(f.values, v) {
		return c.wrong("--%s takes %s, not '%s'", f.long, strings.Join(f.values, ", "), v)
	}
	return nil
}

// errNoFigures is that an instance is of a version without what is asked for.
func errNoFigures(what string) error {
	return fmt.Errorf("the instance says nothing about its %s", what)
}
