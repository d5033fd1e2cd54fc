// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"aldente/broker/foreign"
	"aldente/broker/limiter"
)

// Bounds on what a worker can put into the broker's log.
const (
	maxLine       = 1024 // bytes of a line, the rest is dropped
	maxPanicLines = 64   // lines of a dying runtime that are kept
)

// logRate is how many lines a worker may log.
var logRate = limiter.Rate{PerSecond: 20, Burst: 100}

// logReader turns what a worker writes to its standard error into log records.
// A line "<N>text" has syslog level N; any other line comes from the runtime
// of a dying process and is kept to tell how it ended.
type logReader struct {
	logger *slog.Logger
	limit  limiter.Bucket
	ready  *atomic.Bool // the worker has come up; before that its last error only tells how it ended

	mu    sync.Mutex
	death []string
	last  string // last line at level error
}

func newLogReader(logger *slog.Logger, ready *atomic.Bool) *logReader {
	return &logReader{logger: logger, ready: ready, limit: limiter.Bucket{Rate: logRate}}
}

// panicText returns the lines that had no level: the reason and the goroutine
// that it happened in. The others come after the second empty line.
func (r *logReader) panicText() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	empty := 0
	for i, line := range r.death {
		if line != "" {
			continue
		}
		if empty++; empty == 2 {
			return r.death[:i]
		}
	}
	return r.death
}

// lastError returns the last line at level error, or "".
func (r *logReader) lastError() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// read consumes the pipe until its end and closes it.
func (r *logReader) read(pipe io.ReadCloser) {
	defer pipe.Close()
	b := bufio.NewReaderSize(pipe, maxLine)
	for {
		line, err := b.ReadSlice('\n')
		if len(line) > 0 {
			r.line(string(line), time.Now())
		}
		for err == bufio.ErrBufferFull {
			_, err = b.ReadSlice('\n')
		}
		if err != nil {
			break
		}
	}
	if n := r.limit.Missed(); n > 0 {
		r.logger.Warn("log lines suppressed", "count", n)
	}
}

func (r *logReader) line(raw string, now time.Time) {
	text := foreign.Line(strings.TrimSuffix(raw, "\n"))
	level, text, ok := parseLevel(text)
	if !ok {
		r.mu.Lock()
		if len(r.death) < maxPanicLines {
			r.death = append(r.death, text)
		}
		r.mu.Unlock()
		return
	}
	if level == slog.LevelError {
		r.mu.Lock()
		r.last = text
		r.mu.Unlock()
		if !r.ready.Load() {
			level = slog.LevelDebug
		}
	}
	if !r.limit.Take(now) {
		return
	}
	if n := r.limit.Missed(); n > 0 {
		r.logger.Warn("log lines suppressed", "count", n)
	}
	r.logger.Log(context.Background(), level, text)
}

// parseLevel cuts the level off a line, RFC 5424 section 6.2.1 without facility.
func parseLevel(line string) (level slog.Level, text string, ok bool) {
	if len(line) < 3 || line[0] != '<' || line[1] < '0' || line[1] > '7' || line[2] != '>' {
		return 0, line, false
	}
	switch line[1] {
	case '7':
		level = slog.LevelDebug
	case '6', '5':
		level = slog.LevelInfo
	case '4':
		level = slog.LevelWarn
	default:
		level = slog.LevelError
	}
	return level, line[3:], true
}
