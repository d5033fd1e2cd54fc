// SPDX-License-Identifier: Apache-2.0

package flowlog

import (
	"context"
	"log/slog"
)

// NameRefused tells of a name that the guest asks for and is not told of. The name is the
// guest's choice, in letters that a log can show.
func (l *Log) NameRefused(name, typ, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lines.Take(l.now()) {
		return
	}
	l.tellMissed()
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "name refused",
		slog.String("name", name), slog.String("type", typ), slog.String("verdict", "refused"), slog.String("reason", reason))
}
