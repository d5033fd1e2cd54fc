// SPDX-License-Identifier: Apache-2.0

// Package top is the terminal program that shows what an instance does while it does
// it: header, traffic over time, and the table of its flows.
package top

import (
	"context"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// Limits of the interval between two looks.
const (
	Shortest = 200 * time.Millisecond
	Longest  = time.Minute
)

// patience is how long an instance may take for all that is asked at once.
const patience = 5 * time.Second

// listAgain is how old the list of instances may be: each look at it touches all.
const listAgain = 5 * time.Second

// remembered is how many samples of the traffic are kept.
const remembered = 512

// Config is what top is started with.
type Config struct {
	List  watch.Lister  // finds the instances
	Every time.Duration // between two looks
	Order string        // one of watch.Orders
	Words string        // filter to begin with
	Looks int           // how many there are before Once and Data end, two at least
}

// Model is the state of the program, as Bubble Tea has it.
type Model struct {
	list  watch.Lister
	every time.Duration

	width, height int

	instances []watch.Instance
	listed    time.Time // when; zero: anew at the next tick
	name      string    // of the instance that is shown
	turn      int       // grows when another is shown: answers of before do not count
	gone      bool      // it is not among the instances any more
	asking    bool
	err       error // of the last look

	last, before *watch.Sample
	rows         []watch.Row // of last, all of them
	shown        []watch.Row // those that the filter wants, in order
	traffic      []traffic

	order   int // of watch.Orders
	reverse bool
	filter  string
	typing  bool
	paused  bool
	help    bool
	details bool

	selected flowID
	cursor   int // index of selected in shown
	offset   int // index of the first row on the screen
}

// traffic is the sum over all flows between two samples, in bytes per second, and
// what was not passed on, per second.
type traffic struct{ sent, received, drops float64 }

// flowID tells flows apart.
type flowID struct{ protocol, direction, guest, remote string }

func idOf(r *watch.Row) flowID { return flowID{r.Protocol, r.Direction, r.Guest, r.Remote} }

// New returns the program's state at its start.
func New(c Config) *Model {
	return &Model{
		list: c.List, every: min(max(c.Every, Shortest), Longest), filter: c.Words,
		order: max(slices.Index(watch.Orders, c.Order), 0), width: 80, height: 24,
	}
}

// Messages.
type (
	tick   struct{ turn int }
	listed struct {
		turn      int
		instances []watch.Instance
		err       error
	}
	looked struct {
		turn   int
		sample *watch.Sample
		err    error
	}
)

// Init looks for instances.
func (m *Model) Init() tea.Cmd { return m.find() }

// find lists the instances.
func (m *Model) find() tea.Cmd {
	list, turn := m.list, m.turn
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		all, err := list(ctx)
		return listed{turn, all, err}
	}
}

// look asks the instance that is shown. There is one question at a time.
func (m *Model) look() tea.Cmd {
	i := m.index()
	if i < 0 || m.asking {
		return nil
	}
	m.asking = true
	in, turn := m.instances[i], m.turn
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s, err := watch.Look(ctx, in, api.Status, api.Counters, api.Flows)
		return looked{turn, s, err}
	}
}

// index is that of the instance that is shown, or -1.
func (m *Model) index() int {
	return slices.IndexFunc(m.instances, func(in watch.Instance) bool { return in.Name() == m.name })
}

func (m *Model) wait() tea.Cmd {
	turn := m.turn
	return tea.Tick(m.every, func(time.Time) tea.Msg { return tick{turn} })
}

// Update takes in what has happened.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		return m, m.key(msg)
	case tea.PasteMsg:
		if m.typing {
			m.setFilter(m.filter + printable(msg.Content))
		}
	case tick:
		if msg.turn != m.turn {
			break
		}
		if time.Since(m.listed) < listAgain && m.index() >= 0 {
			return m, m.look()
		}
		return m, m.find()
	case listed:
		return m, m.found(msg)
	case looked:
		if msg.turn == m.turn {
			m.asking = false
			m.take(msg)
			return m, m.wait()
		}
	}
	m.follow()
	return m, nil
}

// found takes over which instances there are. The first is shown if none is.
func (m *Model) found(msg listed) tea.Cmd {
	if msg.err != nil {
		if m.err = msg.err; msg.turn != m.turn {
			return nil
		}
		return m.wait()
	}
	m.instances, m.listed = msg.instances, time.Now()
	if m.name == "" && len(m.instances) > 0 {
		m.name = m.instances[0].Name()
	}
	m.gone = m.name != "" && m.index() < 0
	if msg.turn != m.turn {
		return nil // another instance was chosen meanwhile, and asked at once
	}
	if cmd := m.look(); cmd != nil {
		return cmd
	}
	return m.wait()
}

// take takes over a sample.
func (m *Model) take(msg looked) {
	if m.err = msg.err; msg.err != nil {
		m.listed = time.Time{} // it may have ended
		return
	}
	if m.paused {
		return
	}
	m.before, m.last = m.last, msg.sample
	m.rows = watch.Rows(m.before, m.last)
	if m.before != nil {
		var t traffic
		t.sent, t.received = watch.Traffic(m.before, m.last, m.rows)
		t.drops = watch.Drops(m.before, m.last)
		m.traffic = append(m.traffic, t)
		if len(m.traffic) > remembered {
			m.traffic = slices.Delete(m.traffic, 0, len(m.traffic)-remembered)
		}
	}
	m.arrange()
}

// show turns to another instance.
func (m *Model) show(i int) tea.Cmd {
	if len(m.instances) == 0 {
		return nil
	}
	i = (i%len(m.instances) + len(m.instances)) % len(m.instances)
	if m.instances[i].Name() == m.name {
		return nil
	}
	m.name, m.gone, m.asking, m.err = m.instances[i].Name(), false, false, nil
	m.turn++
	m.last, m.before, m.rows, m.shown, m.traffic = nil, nil, nil, nil, nil
	m.selected, m.cursor, m.offset, m.details, m.paused = flowID{}, 0, 0, false, false
	return m.look()
}

// arrange filters and orders the rows anew.
func (m *Model) arrange() {
	m.shown = watch.Choose(slices.Clone(m.rows), &watch.Filter{Words: strings.Fields(m.filter)})
	watch.Sort(m.shown, watch.Orders[m.order], m.reverse)
	if i := slices.IndexFunc(m.shown, func(r watch.Row) bool { return idOf(&r) == m.selected }); i >= 0 {
		m.cursor = i
	}
	m.follow()
}

// follow keeps cursor and window inside the table.
func (m *Model) follow() {
	m.cursor = min(max(m.cursor, 0), max(len(m.shown)-1, 0))
	n := max(m.room().rows, 1)
	m.offset = min(max(m.offset, m.cursor-n+1), m.cursor)
	m.offset = max(min(m.offset, len(m.shown)-n), 0)
}

func (m *Model) setFilter(s string) {
	if len(s) <= 256 {
		m.filter = s
	}
	m.arrange()
}

// printable is what of a text may stand in the filter.
func printable(s string) string { return strings.ReplaceAll(watch.Text(s), "?", "") }
