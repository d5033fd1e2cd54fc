// SPDX-License-Identifier: Apache-2.0

//go:build captive && !race

package main

import (
	"crypto/rand"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
	"aldente/policy/captive"
	"aldente/policy/stage"
)

// The captive is the worker with its translator replaced by a scripted one. It
// goes through the real lock-down, then does what its script says, one word
// after the other, and reports how each ended, if it still can:
//
//	attempt=NAME   what captured code might try, see policy/captive
//	held=          names the classes of descriptors that it was given
//	skip=LAYER     leave out a layer, to try those behind it
//	open=…         and the like: what captured code might tell the broker, see hostile.go
//	report=log     say it in the log, not on the control channel
//
// The script is Arguments.Extra, or the host name of the configuration where the
// real broker has started it.
type scriptedWorker struct {
	control int
	held    captive.Held
	script  []string
	log     bool
	config  ipc.Config
	ids     map[uint8]uint32 // of a listener of each protocol
}

func prepare(control int) (translator, error) {
	args, err := policy.ParseArguments(os.Args)
	if err != nil {
		return nil, err
	}
	c := &scriptedWorker{control: control, held: captive.Nothing(), script: strings.Fields(args.Extra), ids: map[uint8]uint32{}}
	c.held.Channel, c.held.Log = control, policy.LogFD
	// As the translators do for their secrets: the vDSO maps its state now.
	var secret [16]byte
	_, _ = rand.Read(secret[:])
	buf := make([]byte, ipc.MaxRecord)
	for {
		n, fd, err := ipc.Receive(control, buf, 0)
		if err != nil {
			return nil, err
		}
		kind := ipc.KindOf(buf[:n])
		if kind == ipc.KindStart {
			return c, nil
		}
		c.take(kind, buf[:n], fd)
	}
}

// take notes what a record brings.
func (c *scriptedWorker) take(kind ipc.Kind, rec []byte, fd int) {
	switch kind {
	case ipc.KindConfig:
		if c.config.Decode(rec) == nil && len(c.script) == 0 {
			c.script = strings.Fields(c.config.Hostname.String())
			c.log = true
		}
	case ipc.KindLink:
		c.held.Link = fd
	case ipc.KindCapture:
		c.held.Capture = fd
	case ipc.KindLive:
		c.held.Live = fd
	case ipc.KindListener:
		var l ipc.Listener
		if l.Decode(rec, ipc.KindListener) != nil {
			return
		}
		c.ids[l.Proto] = l.ID
		if l.Proto == ipc.ProtoTCP {
			c.held.Listener = fd
		} else {
			c.held.Datagram = fd
		}
	case ipc.KindOpened:
		var o ipc.Opened
		if o.Decode(rec) == nil && fd >= 0 {
			c.hold(uint8(o.Token), fd)
		}
	}
}

// hold keeps a connected socket of a protocol.
func (c *scriptedWorker) hold(proto uint8, fd int) {
	switch proto {
	case ipc.ProtoTCP:
		c.held.Stream = fd
	case ipc.ProtoUDP:
		c.held.Flow = fd
	default:
		c.held.Echo = fd
	}
}

func (c *scriptedWorker) Run() error {
	if _, err := unix.Write(c.control, ipc.Empty(ipc.KindReady)); err != nil {
		return err
	}
	if slices.Contains(c.script, "report=log") {
		c.log = true
	}
	for _, word := range c.script {
		c.say(word, c.do(word))
	}
	for {
		var b [ipc.MaxRecord]byte
		if n, err := unix.Read(c.control, b[:]); n == 0 || err != nil && err != unix.EINTR {
			return nil
		}
	}
}

// do executes one word; the result is empty for those that have none.
func (c *scriptedWorker) do(word string) string {
	key, value, _ := strings.Cut(word, "=")
	switch key {
	case "attempt":
		return captive.Try(value, c.held)
	case "held":
		return c.classes()
	case "sleep":
		d, _ := time.ParseDuration(value)
		time.Sleep(d)
		return ""
	}
	return c.hostile(key, value)
}

// classes names what the worker holds.
func (c *scriptedWorker) classes() string {
	var names []string
	for _, h := range []struct {
		name string
		fd   int
	}{{"link", c.held.Link}, {"TCP listener", c.held.Listener}, {"UDP listener", c.held.Datagram}, {"capture", c.held.Capture}, {"pipe to a client", c.held.Live}} {
		if h.fd >= 0 {
			names = append(names, h.name)
		}
	}
	return strings.Join(names, ", ")
}

// say tells how a word ended: alone on the control channel, behind the word in
// the log.
func (c *scriptedWorker) say(word, result string) {
	switch {
	case result == "":
	case c.log:
		stage.Logf(stage.LevelWarning, "captive: %s: %s", word, result)
	default:
		_, _ = unix.Write(c.control, []byte(result))
	}
}
