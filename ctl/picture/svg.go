// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// Measures of the picture, in its own units: a cell of the font, and the margin.
const (
	cellWidth, cellHeight = 8.4, 18
	baseline              = 13
	margin                = 14
)

// Colours of a dark terminal, and the sixteen of ANSI.
const (
	ground, ink = "#1b1f27", "#d6dae0"
)

var palette = [16]string{
	"#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d6dae0",
	"#5c6370", "#ff7b86", "#b5e08f", "#ffd88a", "#7fc4ff", "#dd92f2", "#6fd3df", "#ffffff",
}

// look is how text looks.
type look struct {
	fg, bg                          string // empty: the usual
	bold, faint, reverse, underline bool
}

// span is text of one look on one line.
type span struct {
	look
	column int
	text   string
	width  int
}

// svg draws output that has no other escape sequences than those of looks (SGR).
func svg(output string) string {
	lines, columns := spans(output)
	width, height := 2*margin+float64(columns)*cellWidth, 2*margin+len(lines)*cellHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" width="%.0f" height="%d" font-family="ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace" font-size="14">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="8" fill="%s"/>`+"\n", ground)
	for y, line := range lines {
		for _, s := range line {
			s.draw(&b, y)
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// spans takes output apart.
func spans(output string) (lines [][]span, columns int) {
	now := look{}
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\r\n")
		var out []span
		column := 0
		for line != "" {
			text, rest, found := strings.Cut(line, "\x1b[")
			if text != "" {
				w := ansi.StringWidth(text)
				out = append(out, span{now, column, text, w})
				column += w
			}
			if line = rest; !found {
				break
			}
			end := strings.IndexFunc(line, func(c rune) bool { return c >= '@' && c <= '~' })
			if end < 0 {
				break
			}
			if line[end] == 'm' {
				now.apply(line[:end])
			}
			line = line[end+1:]
		}
		columns = max(columns, column)
		lines = append(lines, out)
	}
	return lines, columns
}

// apply changes the look as parameters of SGR say.
func (l *look) apply(parameters string) {
	p := strings.Split(parameters, ";")
	for i := 0; i < len(p); i++ {
		switch n, _ := strconv.Atoi(p[i]); {
		case n == 0:
			*l = look{}
		case n == 1:
			l.bold = true
		case n == 2:
			l.faint = true
		case n == 4:
			l.underline = true
		case n == 7:
			l.reverse = true
		case n == 22:
			l.bold, l.faint = false, false
		case n == 24:
			l.underline = false
		case n == 27:
			l.reverse = false
		case n >= 30 && n <= 37:
			l.fg = palette[n-30]
		case n == 39:
			l.fg = ""
		case n >= 40 && n <= 47:
			l.bg = palette[n-40]
		case n == 49:
			l.bg = ""
		case n >= 90 && n <= 97:
			l.fg = palette[n-90+8]
		case n >= 100 && n <= 107:
			l.bg = palette[n-100+8]
		}
	}
}

// draw draws a span on a line.
func (s *span) draw(b *strings.Builder, line int) {
	fg, bg := s.fg, s.bg
	if fg == "" {
		fg = ink
	}
	if s.reverse {
		if bg == "" {
			bg = ground
		}
		fg, bg = bg, fg
	}
	x, y := margin+float64(s.column)*cellWidth, margin+line*cellHeight
	if bg != "" {
		fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, float64(s.width)*cellWidth, cellHeight, bg)
	}
	if strings.TrimSpace(s.text) == "" && !s.underline {
		return
	}
	more := ""
	if s.bold {
		more += ` font-weight="bold"`
	}
	if s.faint {
		more += ` fill-opacity="0.6"`
	}
	if s.underline {
		more += ` text-decoration="underline"`
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%d" textLength="%.1f" xml:space="preserve" fill="%s"%s>%s</text>`+"\n",
		x, y+baseline, float64(s.width)*cellWidth, fg, more, escape(s.text))
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", " ", "\u00a0").Replace(s)
}
