// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

// Styles. Bubble Tea leaves out the colours where the terminal has none or NO_COLOR
// is set; the rest says the same without them.
var (
	bold     = style(ansi.AttrBold)
	faint    = style(ansi.AttrFaint)
	reverse  = style(ansi.AttrReverse)
	headline = style(ansi.AttrBold, ansi.AttrUnderline)
	alarm    = style(ansi.AttrBold, ansi.AttrRedForegroundColor)
	notice   = style(ansi.AttrYellowForegroundColor)
	green    = style(ansi.AttrGreenForegroundColor)
	blue     = style(ansi.AttrBlueForegroundColor)
	cyan     = style(ansi.AttrCyanForegroundColor)
)

// look is how text looks.
type look ansi.Style

func style(attrs ...ansi.Attr) look { return look(ansi.NewStyle(attrs...)) }

// Render is text with the look.
func (l look) Render(s string) string {
	if s == "" {
		return ""
	}
	return ansi.Style(l).Styled(s)
}

// room says what of the screen goes to what, in lines.
type room struct {
	header int // lines above the table: 5, 3, 1 or none
	rows   int // of the table, without its titles
	footer int // of keys
}

// room divides the screen: what is worth least goes first where it is small.
func (m *Model) room() room {
	var r room
	switch h := m.height; {
	case h >= 14:
		r = room{header: 6, footer: 1}
	case h >= 9:
		r = room{header: 3, footer: 1}
	case h >= 4:
		r = room{header: 1}
	}
	r.rows = max(m.height-r.header-r.footer-1, 0)
	return r
}

// View is the screen.
func (m *Model) View() tea.View {
	v := tea.NewView(strings.Join(m.Frame(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "aldentectl top"
	return v
}

// Frame is the screen line by line: as many as it has, none longer than it is wide.
func (m *Model) Frame() []string {
	r := m.room()
	lines := m.header(r.header)
	switch {
	case m.help:
		lines = append(lines, m.helpLines()...)
	case m.details && m.cursor < len(m.shown):
		lines = append(lines, m.detailLines(&m.shown[m.cursor])...)
	default:
		lines = append(lines, m.table(r.rows)...)
	}
	body := max(m.height-r.footer, 0)
	lines = lines[:min(len(lines), body)]
	for len(lines) < body {
		lines = append(lines, "")
	}
	if r.footer > 0 {
		lines = append(lines, m.footer())
	}
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], m.width, "")
	}
	return lines
}

// header is what is above the table.
func (m *Model) header(lines int) []string {
	switch {
	case lines >= 6:
		return []string{m.title(), m.curve(true), m.curve(false), m.counts(), m.limits(), m.message()}
	case lines >= 3:
		return []string{m.title(), m.rates() + "   " + m.counts(), m.message()}
	case lines >= 1:
		if m.typing || m.trouble() != "" {
			return []string{m.message()}
		}
		return []string{m.rates() + "   " + m.counts()}
	}
	return nil
}

// title says which instance this is and how it fares.
func (m *Model) title() string {
	at := ""
	if n := len(m.instances); n > 1 {
		at = fmt.Sprintf(" [%d/%d]", m.index()+1, n)
	}
	if m.last == nil || m.last.Status == nil {
		return bold.Render("aldente "+m.name) + at
	}
	s := m.last.Status
	parts := []string{bold.Render(fmt.Sprintf("%s %d", cmp.Or(s.Personality, "aldente"), s.PID)) + at}
	if s.Guest != "" {
		parts = append(parts, s.Guest)
	}
	link := s.Link
	if s.Interface != "" {
		link += " " + s.Interface
	}
	if link != "" {
		parts = append(parts, fmt.Sprintf("%s, MTU %d", link, s.MTU))
	}
	if t, err := time.Parse(time.RFC3339, s.Started); err == nil && m.last.At.After(t) {
		parts = append(parts, "up "+watch.Span(m.last.At.Sub(t).Seconds()))
	}
	if !s.Connected {
		parts = append(parts, notice.Render("no guest"))
	}
	if s.WorkerPID == 0 {
		parts = append(parts, alarm.Render("no worker"))
	}
	if s.Restarts > 0 {
		parts = append(parts, notice.Render(fmt.Sprintf("worker restarted %d times", s.Restarts)))
	}
	return strings.Join(parts, "  ")
}

// now is the newest traffic.
func (m *Model) now() traffic {
	if len(m.traffic) == 0 {
		return traffic{}
	}
	return m.traffic[len(m.traffic)-1]
}

// rates is the traffic in numbers alone.
func (m *Model) rates() string {
	t := m.now()
	return cyan.Render("up "+watch.Rate(t.sent)) + "  " + green.Render("down "+watch.Rate(t.received))
}

// curve is the traffic of one way over time.
func (m *Model) curve(up bool) string {
	label, style, now := "down", green, m.now().received
	values := make([]float64, len(m.traffic))
	top := 0.0
	for i, t := range m.traffic {
		if values[i] = t.received; up {
			values[i] = t.sent
		}
	}
	if up {
		label, style, now = "up", cyan, m.now().sent
	}
	const left, right = 19, 20
	width := max(m.width-left-right, 0)
	for _, v := range values[max(len(values)-width, 0):] {
		top = max(top, v)
	}
	line := fmt.Sprintf("%-5s%12s  ", label, watch.Rate(now))
	peak := faint.Render(fmt.Sprintf("  peak %12s", watch.Rate(top)))
	return line + style.Render(watch.Spark(values, width, top)) + peak
}

// counts says how many flows there are, and what was not passed on.
func (m *Model) counts() string {
	if m.last == nil {
		return faint.Render("…")
	}
	n := map[string]int{}
	for i := range m.rows {
		n[m.rows[i].Protocol]++
	}
	var each []string
	for _, p := range []string{"tcp", "udp", "icmp"} {
		if n[p] > 0 {
			each = append(each, fmt.Sprintf("%d %s", n[p], p))
		}
	}
	s := fmt.Sprintf("flows %d", len(m.rows))
	if len(each) > 0 {
		s += " (" + strings.Join(each, ", ") + ")"
	}
	if len(m.shown) < len(m.rows) {
		s += fmt.Sprintf(", shown %d", len(m.shown))
	}
	if m.last.Counters != nil {
		drops := fmt.Sprintf("drops %s (%s/s)", watch.Count(watch.Dropped(m.last)), watch.Count(m.now().drops))
		if m.now().drops > 0 {
			drops = notice.Render(drops)
		}
		refused := fmt.Sprintf("refused %s", watch.Count(watch.Refused(m.last)))
		s += "   " + drops + "   " + refused
	}
	return s
}

// limits shows the budgets that are used most, if any is.
func (m *Model) limits() string {
	if m.last == nil || m.last.Status == nil {
		return ""
	}
	limits := slices.Clone(m.last.Status.Limits)
	limits = slices.DeleteFunc(limits, func(l api.Limit) bool { return l.Max == 0 || l.Used == 0 && l.Refused == 0 })
	part := func(l api.Limit) float64 { return float64(l.Used) / float64(l.Max) }
	slices.SortStableFunc(limits, func(a, b api.Limit) int { return cmp.Compare(part(b), part(a)) })
	var parts []string
	for _, l := range limits[:min(len(limits), 4)] {
		share := min(part(l), 1)
		text := fmt.Sprintf("%s %s %d/%d", l.Name, bar(share, 8), l.Used, l.Max)
		switch {
		case l.Refused > 0:
			text = alarm.Render(fmt.Sprintf("%s, refused %d", text, l.Refused))
		case share > 0.8:
			text = notice.Render(text)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "   ")
}

// bar is a share of 1 as a picture.
func bar(share float64, width int) string {
	n := int(share*float64(width) + 0.5)
	return strings.Repeat("█", n) + strings.Repeat("░", width-n)
}

// trouble is why what is shown is not what is.
func (m *Model) trouble() string {
	switch {
	case m.err != nil:
		return watch.Text(m.err.Error())
	case m.gone:
		return fmt.Sprintf("instance %s has ended", m.name)
	case len(m.instances) == 0:
		return "there is no instance that you may look at; waiting for one"
	case m.last != nil && m.last.Refused != "":
		return m.last.Refused
	}
	return ""
}

// message is the line between header and table.
func (m *Model) message() string {
	switch t := m.trouble(); {
	case m.typing:
		return bold.Render("filter: ") + m.filter + reverse.Render(" ")
	case t != "":
		return alarm.Render(t)
	case m.paused:
		return notice.Render("paused: Space goes on")
	case m.filter != "":
		return "filter: " + m.filter
	}
	return ""
}

// table is the titles and those rows for which there is room.
func (m *Model) table(rows int) []string {
	end := min(m.offset+rows, len(m.shown))
	window := m.shown[min(m.offset, end):end]
	t := watch.Layout(window, watch.Columns, m.width)
	head := t.Head
	for _, c := range t.Columns {
		if c.Order == watch.Orders[m.order] {
			mark := "▾"
			if m.reverse {
				mark = "▴"
			}
			// The mark takes the place of a space, so that nothing moves.
			if s := strings.Replace(head, " "+c.Title, mark+c.Title, 1); c.Right && s != head {
				head = s
			} else {
				head = strings.Replace(head, c.Title+" ", c.Title+mark, 1)
			}
			break
		}
	}
	lines := []string{headline.Render(pad(head, m.width))}
	for i, line := range t.Lines {
		lines = append(lines, m.row(&window[i], line, m.offset+i == m.cursor))
	}
	return lines
}

// row colours one row by what it is.
func (m *Model) row(r *watch.Row, line string, marked bool) string {
	switch {
	case marked:
		return reverse.Render(pad(line, m.width))
	case strings.HasPrefix(r.State, "SYN-"):
		return notice.Render(line)
	case r.Known && r.SentRate+r.ReceivedRate > 0:
		return line
	case strings.HasPrefix(r.Direction, "bypass"):
		return blue.Render(line)
	}
	return faint.Render(line)
}

func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-ansi.StringWidth(s), 0))
}

// footer is the line of keys.
func (m *Model) footer() string {
	if m.typing {
		return "Enter keep   Esc forget   words that a flow has; !word: that it has not"
	}
	var parts []string
	for _, b := range bindings {
		brief := b.brief
		if brief == "sort" {
			brief = "by " + watch.Orders[m.order]
		}
		if brief != "" && (brief != "instance" || len(m.instances) > 1) {
			parts = append(parts, bold.Render(b.shown)+" "+brief)
		}
	}
	return strings.Join(parts, "  ") + faint.Render("  every "+m.every.String())
}

func (m *Model) helpLines() []string {
	lines := []string{"", bold.Render("Keys"), ""}
	for _, b := range bindings {
		lines = append(lines, fmt.Sprintf("  %-10s %s", b.shown, b.help))
	}
	return append(lines, fmt.Sprintf("  %-10s %s", "1 … 9", "instance of that number"))
}

// detailLines is all about one flow.
func (m *Model) detailLines(r *watch.Row) []string {
	rate := func(v float64) string {
		if !r.Known {
			return ""
		}
		return "   " + watch.Rate(v)
	}
	rows := [][2]string{
		{"flow", fmt.Sprintf("%s %s %s", r.Protocol, r.Direction, r.State)},
		{"guest", r.Guest},
		{"remote", r.Remote},
		{"name", cmp.Or(r.Name, "-")},
		{"rule", cmp.Or(r.Rule, "-")},
		{"age", watch.Span(r.Age)},
		{"idle", watch.Span(r.Idle)},
		{"sent", fmt.Sprintf("%s, %s packets%s", watch.Bytes(float64(r.Sent)), watch.Count(float64(r.SentPackets)), rate(r.SentRate))},
		{"received", fmt.Sprintf("%s, %s packets%s", watch.Bytes(float64(r.Received)), watch.Count(float64(r.ReceivedPackets)), rate(r.ReceivedRate))},
		{"RTT", watch.RTT(r.RTT)},
		{"retransmits", watch.Count(float64(r.Retransmits))},
		{"queued", watch.Bytes(float64(r.Queued))},
	}
	lines := []string{""}
	for _, l := range rows {
		lines = append(lines, "  "+faint.Render(fmt.Sprintf("%-12s", l[0]))+l[1])
	}
	return append(lines, "", faint.Render("  Enter or Esc: back"))
}
