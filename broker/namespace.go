// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"aldente/broker/agent"
	"aldente/broker/cli"
	"aldente/broker/netns"
)

// enter makes or opens the guest's namespaces and starts the agent there.
func (in *instance) enter() error {
	ids := unprivileged(in.cfg)
	if in.cfg.Target.Kind == cli.TargetSpawn {
		c := netns.Command{
			Path: in.cfg.Command[0], Args: append([]string(nil), in.cfg.Command...),
			HostnamePrefix: in.cfg.Personality.String() + "-",
			NoPIDNS:        in.cfg.NoPidns,
			HideSockets:    in.cfg.HideSockets,
			ResolvConf:     in.plan.ResolvConf,
			UID:            int(ids.UID), GID: int(ids.GID),
		}
		if in.cfg.LoginShell {
			c.Args[0] = "-" + c.Path
		}
		child, err := netns.Create(c)
		if err != nil {
			return err
		}
		in.child, in.ns = child, &child.Namespace
	} else {
		ns, err := netns.Open(in.target())
		if err != nil {
			return err
		}
		if err := letGo(namespaceFDs(in.cfg)); err != nil {
			ns.Close()
			return err
		}
		in.ns = ns
		if err := in.watchNamespace(); err != nil {
			return err
		}
	}
	if ids.changes() {
		in.ns.SetAgentIDs(int(ids.own.UID), int(ids.own.GID))
	}
	var err error
	in.agent, err = agent.Start(in.ns, in.agentSays())
	return err
}

func (in *instance) target() netns.Target {
	t := in.cfg.Target
	n := netns.Target{UserPath: in.cfg.Userns, NetnsOnly: in.cfg.NetnsOnly}
	switch t.Kind {
	case cli.TargetPID:
		n.PID = t.PID
	case cli.TargetPath:
		n.Path = t.Path
	case cli.TargetName:
		n.Path = t.Name
	}
	return n
}

// watchNamespace has the end of an existing namespace noticed, where it counts, and where
// it has a name that could go.
func (in *instance) watchNamespace() (err error) {
	if in.cfg.NoNetnsQuit || strings.HasPrefix(in.cfg.Target.Path, ownFDs) {
		return nil
	}
	if in.watch, err = in.ns.Watch(); err != nil {
		return err
	}
	if why := in.watch.Polls(); why != nil {
		in.log.Info("the namespace's path is looked up once a second, since it cannot be watched", "error", why)
	}
	return nil
}

// agentSays takes the agent's last words into the log: the first line, which has
// the reason, and where it happened only for who wants to know.
func (in *instance) agentSays() func(line string) {
	level := slog.LevelError
	return func(line string) {
		in.log.Log(context.Background(), level, line, "component", "agent")
		level = slog.LevelDebug
	}
}

type childExit struct {
	status int
	err    error
}

func waitChild(c *netns.Child) <-chan childExit {
	done := make(chan childExit, 1)
	go func() {
		status, err := c.Wait()
		if failed := (*netns.ExecError)(nil); errors.As(err, &failed) {
			status = 1 // as the original: ours to report, not the command's
		}
		done <- childExit{status, explain(err)}
	}()
	return done
}
