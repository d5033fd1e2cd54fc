// SPDX-License-Identifier: Apache-2.0

package top

import (
	"time"

	tea "charm.land/bubbletea/v2"

	"aldente/ctl/watch"
)

// binding is one row of the table of keys.
type binding struct {
	keys  []string // as Bubble Tea names them
	shown string   // as a person does
	brief string   // for the last line, empty: not there
	help  string   // what it does
	do    func(*Model) tea.Cmd
}

// bindings are set in init, since the help that one of them shows reads them.
var bindings []binding

func init() {
	bindings = []binding{
		{[]string{"q", "ctrl+c"}, "q", "quit", "end", func(*Model) tea.Cmd { return tea.Quit }},
		{[]string{"?", "h", "f1"}, "?", "help", "show or hide this help", func(m *Model) tea.Cmd { m.help = !m.help; return nil }},
		{[]string{"/", "f"}, "/", "filter", "show only flows with these words; !word: without it", func(m *Model) tea.Cmd { m.typing, m.help = true, false; return nil }},
		{[]string{"s", ">", "right", "l"}, "s", "sort", "next order (also >)", func(m *Model) tea.Cmd { return m.sort(1) }},
		{[]string{"S", "<", "left"}, "S", "", "order before (also <)", func(m *Model) tea.Cmd { return m.sort(-1) }},
		{[]string{"r"}, "r", "reverse", "turn the order round", func(m *Model) tea.Cmd { m.reverse = !m.reverse; m.arrange(); return nil }},
		{[]string{"tab"}, "Tab", "instance", "next instance", func(m *Model) tea.Cmd { return m.show(m.index() + 1) }},
		{[]string{"shift+tab"}, "Shift-Tab", "", "instance before", func(m *Model) tea.Cmd { return m.show(m.index() - 1) }},
		{[]string{"enter"}, "Enter", "details", "all about the flow that is marked", func(m *Model) tea.Cmd { m.details = !m.details; return nil }},
		{[]string{"space", "p"}, "Space", "pause", "hold what is shown, or go on", func(m *Model) tea.Cmd { m.paused = !m.paused; return nil }},
		{[]string{"up", "k"}, "Up", "", "mark the flow above (also k)", func(m *Model) tea.Cmd { return m.move(-1) }},
		{[]string{"down", "j"}, "Down", "", "mark the flow below (also j)", func(m *Model) tea.Cmd { return m.move(1) }},
		{[]string{"pgup", "ctrl+b"}, "PgUp", "", "one screen up", func(m *Model) tea.Cmd { return m.move(-m.room().rows) }},
		{[]string{"pgdown", "ctrl+f"}, "PgDn", "", "one screen down", func(m *Model) tea.Cmd { return m.move(m.room().rows) }},
		{[]string{"home", "g"}, "Home", "", "first flow (also g)", func(m *Model) tea.Cmd { return m.move(-len(m.shown)) }},
		{[]string{"end", "G"}, "End", "", "last flow (also G)", func(m *Model) tea.Cmd { return m.move(len(m.shown)) }},
		{[]string{"+", "="}, "+", "", "look more often", func(m *Model) tea.Cmd { return m.pace(m.every / 2) }},
		{[]string{"-"}, "-", "", "look less often", func(m *Model) tea.Cmd { return m.pace(m.every * 2) }},
		{[]string{"esc"}, "Esc", "", "close help and details, forget the filter", func(m *Model) tea.Cmd { m.escape(); return nil }},
		{[]string{"ctrl+z"}, "Ctrl-Z", "", "stop; the shell's fg goes on", func(*Model) tea.Cmd { return tea.Suspend }},
	}
}

// key does what a key is for.
func (m *Model) key(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	if m.typing {
		return m.typeFilter(k, name)
	}
	if len(name) == 1 && name[0] >= '1' && name[0] <= '9' && int(name[0]-'1') < len(m.instances) {
		return m.show(int(name[0] - '1'))
	}
	for i := range bindings {
		for _, n := range bindings[i].keys {
			if n == name {
				cmd := bindings[i].do(m)
				m.follow()
				return cmd
			}
		}
	}
	return nil
}

// typeFilter takes a key as a part of the filter.
func (m *Model) typeFilter(k tea.KeyPressMsg, name string) tea.Cmd {
	switch name {
	case "ctrl+c":
		return tea.Quit
	case "enter":
		m.typing = false
	case "esc":
		m.typing = false
		m.setFilter("")
	case "backspace":
		if r := []rune(m.filter); len(r) > 0 {
			m.setFilter(string(r[:len(r)-1]))
		}
	case "ctrl+u":
		m.setFilter("")
	default:
		m.setFilter(m.filter + printable(k.Text))
	}
	return nil
}

// sort goes to another order.
func (m *Model) sort(by int) tea.Cmd {
	m.order = (m.order + by + len(watch.Orders)) % len(watch.Orders)
	m.arrange()
	return nil
}

// move marks another flow.
func (m *Model) move(by int) tea.Cmd {
	m.cursor = min(max(m.cursor+by, 0), max(len(m.shown)-1, 0))
	if m.cursor < len(m.shown) {
		m.selected = idOf(&m.shown[m.cursor])
	}
	return nil
}

// pace changes how often the instance is asked.
func (m *Model) pace(every time.Duration) tea.Cmd {
	m.every = min(max(every, Shortest), Longest)
	return nil
}

func (m *Model) escape() {
	switch {
	case m.help:
		m.help = false
	case m.details:
		m.details = false
	case m.filter != "":
		m.setFilter("")
	}
}
