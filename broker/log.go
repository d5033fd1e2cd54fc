// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"

	"aldente/broker/cli"
	"aldente/broker/logging"
)

// newLog makes the log that options ask for. Errors always show; the rest as asked, until
// level is changed.
func newLog(cfg *cli.Config) (*slog.Logger, *logging.Output, *slog.LevelVar, error) {
	var level slog.LevelVar
	switch {
	case cfg.Trace, cfg.Debug:
		level.Set(slog.LevelDebug)
	case cfg.Quiet, cfg.Target.Kind == cli.TargetSpawn:
		level.Set(slog.LevelWarn)
	}
	who := unprivileged(cfg)
	log, out, err := logging.New(logging.Options{
		Level: &level, Tag: cfg.Personality.String(), File: cfg.LogFile, Size: cfg.LogSize,
		Guarded: who.changes(), Stream: who.own.UID != who.UID,
	})
	return log, out, &level, err
}
