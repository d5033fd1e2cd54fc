// SPDX-License-Identifier: Apache-2.0

//go:build captive

package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/policy/captive"
)

// Test builds do, once all is set up and locked down, what the environment says:
//
//	ALDENTE_CAPTIVE=broker:NAME,…   what captured code might try, see policy/captive
//	ALDENTE_CAPTIVE=agent:NAME,…    the same in the agent
//	ALDENTE_CAPTIVE_SKIP=seccomp    leave the broker's filter out
//	ALDENTE_CAPTIVE_NAMES=WORD …    what a test build of aldente-names does, see names/captive.go
//
// and tell on standard error how each ended.

var script, skip = os.Getenv("ALDENTE_CAPTIVE"), os.Getenv("ALDENTE_CAPTIVE_SKIP")

// namesExtra is the script of a test build of aldente-names.
func namesExtra() string { return os.Getenv("ALDENTE_CAPTIVE_NAMES") }

func unlessSkipped(filter string) string {
	if skip == "seccomp" {
		return ""
	}
	return filter
}

func (in *instance) captive() {
	who, names, _ := strings.Cut(script, ":")
	for name := range strings.SplitSeq(names, ",") {
		switch who {
		case "broker":
			fmt.Fprintf(os.Stderr, "captive: %s: %s\n", name, captive.Try(name, in.held()))
		case "agent":
			if err := in.agent.Captive(name); err != nil {
				fmt.Fprintf(os.Stderr, "captive: %v\n", err)
			}
			return
		}
	}
}

// held are the descriptors that a broker holds.
func (in *instance) held() captive.Held {
	h := captive.Nothing()
	h.Link, h.Log, h.Channel = in.linkFD, 2, in.worker.Control()
	if in.capture != nil {
		h.Capture = in.capture.fd
	}
	h.User, h.Mount = in.worker.Home()
	for _, l := range in.factory.Listeners() {
		if l.Proto == unix.IPPROTO_TCP {
			h.Listener = l.FD
		} else {
			h.Datagram = l.FD
		}
	}
	return h
}
