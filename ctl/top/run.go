// SPDX-License-Identifier: Apache-2.0

package top

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/term"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// ErrNoTerminal says that there is nothing to draw on.
var ErrNoTerminal = errors.New("top needs a terminal; \"top --once\" prints one screen without")

// Run shows the program until the user ends it, a signal does, or the terminal is gone. The
// terminal is as before then.
func Run(c Config) error {
	if !term.IsTerminal(os.Stdin.Fd()) || !term.IsTerminal(os.Stdout.Fd()) || os.Getenv("TERM") == "dumb" {
		return ErrNoTerminal
	}
	// Bubble Tea itself knows of SIGINT and SIGTERM only.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGTERM)
	defer stop()
	_, err := tea.NewProgram(New(c), tea.WithContext(ctx)).Run()
	if ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		return nil
	}
	return err
}

// looks is the state after some looks at the first instance.
func looks(c Config) (*Model, error) {
	m := New(c)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	for i := range max(c.Looks, 2) {
		if i > 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(m.every):
			}
		}
		all, err := c.List(ctx)
		if err != nil {
			return nil, err
		}
		m.instances = all
		if m.name == "" && len(all) > 0 {
			m.name = all[0].Name()
		}
		at := m.index()
		if at < 0 {
			return nil, errors.New("there is no instance that you may look at")
		}
		asked, cancel := context.WithTimeout(ctx, patience)
		s, err := watch.Look(asked, all[at], api.Status, api.Counters, api.Flows)
		cancel()
		if err != nil {
			return nil, err
		}
		m.take(looked{sample: s})
	}
	return m, nil
}

// Once writes one screen to w, after c.Looks looks at the first instance: as much as the
// terminal shows, or as COLUMNS and LINES say.
func Once(c Config, w io.Writer) error {
	m, err := looks(c)
	if err != nil {
		return err
	}
	m.width, m.height = size()
	m.follow()
	out := colorprofile.NewWriter(w, os.Environ())
	_, err = io.WriteString(out, strings.Join(m.Frame(), "\n")+"\n")
	return err
}

// Screen is what a screen shows, as data.
type Screen struct {
	Status   *api.StatusReply `json:"status"`        // what the instance is
	Sent     float64          `json:"sent_rate"`     // bytes per second from the guest
	Received float64          `json:"received_rate"` // bytes per second to the guest
	Dropped  float64          `json:"drop_rate"`     // per second
	Flows    []watch.Row      `json:"flows"`         // that the filter wants, in order
}

// Data returns what Once would show.
func Data(c Config) (*Screen, error) {
	m, err := looks(c)
	if err != nil {
		return nil, err
	}
	t := m.now()
	return &Screen{m.last.Status, t.sent, t.received, t.drops, m.shown}, nil
}

// size is that of the terminal, of COLUMNS and LINES, or 100 by 30.
func size() (width, height int) {
	width, height = 100, 30
	if w, h, err := term.GetSize(os.Stdout.Fd()); err == nil && w > 0 && h > 1 {
		width, height = w, h-1 // the prompt comes below
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 && n <= 1000 {
		width = n
	}
	if n, err := strconv.Atoi(os.Getenv("LINES")); err == nil && n > 0 && n <= 1000 {
		height = n
	}
	return width, height
}
