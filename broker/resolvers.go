// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"

	"aldente/broker/hostnet"
	"aldente/broker/plan"
	"aldente/broker/reader"
)

// resolvers is what following the host's resolvers takes.
type resolvers struct {
	reader *reader.Reader // of resolv.conf, nil: what was read at start holds
	file   *os.File       // the command's own resolv.conf, nil: it sees the host's
	size   int            // of what was written to that

	warnings []string // of the command's process, which was asked early
	asked    bool
}

// resolvConfs are what resolv.conf leads to where some program manages it. Another may take
// its place.
var resolvConfs = []string{
	"/run/systemd/resolve/stub-resolv.conf", "/run/systemd/resolve/resolv.conf",
	"/run/NetworkManager/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf",
	"/run/resolvconf/resolv.conf", "/run/connman/resolv.conf", "/run/netconfig/resolv.conf",
}

// watchResolvers has changes of resolv.conf noticed, before it is read.
func (in *instance) watchResolvers() {
	if !in.follows() || in.net.watcher == nil {
		return
	}
	if err := in.net.watcher.File(hostnet.ResolvConf, resolvConfs...); err != nil {
		in.log.Info("changes of the host's resolvers are noticed with those of its network only", "error", err)
	}
}

// prepareResolvers makes what reads resolv.conf again, while this process may: it opens
// no file later.
func (in *instance) prepareResolvers() {
	if !in.follows() || in.net.watcher == nil {
		return
	}
	r, err := reader.New([]string{hostnet.ResolvConf}, hostnet.MaxResolvConf, false)
	if err != nil {
		in.log.Warn("the host's resolvers are not followed", "error", err)
		return
	}
	in.resolvers.reader = r
}

// openResolvConf opens the command's own resolv.conf, to be written again, before this
// process is confined.
func (in *instance) openResolvConf() error {
	if !in.follows() || in.net.watcher == nil || in.child == nil || in.plan.ResolvConf == nil {
		return nil
	}
	if _, err := in.childReady(); err != nil {
		return err
	}
	f, err := in.child.OpenResolvConf(len(in.plan.ResolvConf))
	if err != nil {
		in.log.Info("the command's resolv.conf stays as it is", "error", err)
		return nil
	}
	in.resolvers.file, in.resolvers.size = f, len(in.plan.ResolvConf)
	return nil
}

// childReady waits until the command's process has done its part, once.
func (in *instance) childReady() (warnings []string, err error) {
	if !in.resolvers.asked {
		in.resolvers.asked = true
		in.resolvers.warnings, err = in.child.Ready()
	}
	return in.resolvers.warnings, err
}

// readResolvers reads the host's resolvers. As long as they cannot be read, they are what
// they were.
func (in *instance) readResolvers(before hostnet.Resolvers) hostnet.Resolvers {
	r := &in.resolvers
	if r.reader == nil {
		return before
	}
	files, err := r.reader.Read()
	if err != nil {
		in.log.Warn("the host's resolvers are not followed any more", "error", err)
		r.reader = nil
		return before
	}
	switch f := &files[0]; {
	case errors.Is(f.Err, fs.ErrNotExist):
		return hostnet.Resolvers{}
	case f.Err != nil:
		in.log.Debug("the host's resolvers cannot be read now", "error", f.Err)
		return before
	default:
		after := hostnet.ParseResolvers(f.Text)
		after.Text = f.Text
		after.NumberZones(in.linkIndex)
		return after
	}
}

// changeResolvers tells who knows of resolvers by other means than the factory.
func (in *instance) changeResolvers(d *plan.Difference, after *plan.Plan) {
	if d.Names && in.names != nil {
		in.names.SetResolvers(after.Names.Config, after.Names.Resolvers)
	}
	r := &in.resolvers
	if !d.Resolv || r.file == nil {
		return
	}
	// Whoever reads meanwhile finds whole lines: what is longer is cut when all is there.
	text := after.ResolvText()
	padded := append(bytes.Clone(text), bytes.Repeat([]byte("\n"), max(r.size-len(text), 0))...)
	_, err := r.file.WriteAt(padded, 0)
	if err == nil {
		err = r.file.Truncate(int64(len(text)))
	}
	if err != nil {
		in.log.Warn("the command's resolv.conf cannot be written", "error", err)
		return
	}
	r.size = len(text)
}
