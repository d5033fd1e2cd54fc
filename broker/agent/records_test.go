// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/ipc"
	"aldente/ipc/ipctest"
)

// setupOf begins a description that the records of the tests belong to.
func setupOf(flags uint32) []byte {
	return (&ipc.AgentSetup{ID: 1, Flags: ipc.AgentSetupNoLink | flags}).Encode()
}

// TestRecordsTakenByAgent: the agent takes what the table of kinds says, before it has
// confined itself and after, and ends over anything else.
func TestRecordsTakenByAgent(t *testing.T) {
	nettest.Host(t)
	records := ipctest.Records()
	commit := (&ipc.AgentCommit{ID: 1}).Encode()
	records[ipc.AgentKindSetup], records[ipc.AgentKindCommit] = setupOf(0), commit
	before := map[ipc.Kind][][]byte{ // without it, the record is out of place
		ipc.AgentKindChange: {setupOf(0)},
		ipc.AgentKindCommit: {setupOf(0)},
		ipc.AgentKindScan:   {setupOf(ipc.AgentSetupScan), commit},
	}
	for _, phase := range []ipc.Phase{ipc.Starting, ipc.Running} {
		for _, m := range ipctest.Messages(records) {
			ours, its, err := ipc.Pair()
			if err != nil {
				t.Fatal(err)
			}
			s := &server{channel: its, taps: map[string]tap{}, tun: -1, follower: &follower{}}
			for _, b := range before[m.Kind] {
				if err := s.handle(ipc.KindOf(b), b); err != nil {
					t.Fatal(err)
				}
			}
			s.confined = phase == ipc.Running
			fd := -1
			if m.FD {
				fd = its
			}
			if err := ipc.Send(ours, m.Bytes, fd); err != nil {
				t.Fatal(err)
			}
			_ = unix.Shutdown(ours, unix.SHUT_WR)
			err = s.serve()
			if want := ipctest.Permitted(&m, ipc.ToAgent, phase); want != (err == nil) || want == errors.Is(err, ipc.ErrMalformed) {
				t.Errorf("%s, in phase %d: %v, the table says %v", m.Name, phase, err, want)
			}
			if s.scanner != nil {
				s.scanner.Close()
				s.scan.timer.Close()
			}
			unix.Close(ours)
			unix.Close(its)
		}
	}
}

// TestRecordsTakenOfAgent: of an agent that sets up, and of one that serves, the broker
// takes what the table says.
func TestRecordsTakenOfAgent(t *testing.T) {
	records := ipctest.Records()
	records[ipc.AgentKindReport] = (&ipc.AgentReport{ID: 1}).Encode()
	for _, m := range ipctest.Messages(records) {
		want := ipctest.Permitted(&m, ipc.FromAgent, ipc.Starting)
		if want && m.Kind == ipc.AgentKindTap {
			continue // it has to be a tap: TestAgentsTap
		}
		err := answerTo(t, &m)
		if want == errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%s, while it sets up: %v, the table says %v", m.Name, err, want)
		}
	}
	for _, errno := range []uint16{0, uint16(unix.EMFILE)} {
		records[ipc.AgentKindOpened] = (&ipc.AgentOpened{ID: 1, Errno: errno}).Encode()
		for _, m := range ipctest.Messages(records) {
			if m.Kind == ipc.AgentKindOpened && m.FD != (errno == 0) {
				continue // what the record says is not for the table
			}
			err := takeOf(t, &m)
			if want := ipctest.Permitted(&m, ipc.FromAgent, ipc.Running); want != (err == nil) || want == errors.Is(err, ipc.ErrMalformed) {
				t.Errorf("%s, while it serves: %v, the table says %v", m.Name, err, want)
			}
		}
	}
}

// answerTo is the end of a request that a message answers, if not by that, by the
// failure that follows.
func answerTo(t *testing.T, m *ipctest.Message) error {
	t.Helper()
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ours)
	defer unix.Close(its)
	fd := -1
	if m.FD {
		fd = its
	}
	if err := ipc.Send(its, m.Bytes, fd); err != nil {
		t.Fatal(err)
	}
	if err := ipc.Send(its, (&ipc.AgentReport{ID: 1, Fatal: 1}).Encode(), -1); err != nil {
		t.Fatal(err)
	}
	_, err = (&Client{channel: ours, id: 1}).answer()
	return err
}

// takeOf takes a message as the answer to a request, or to a scan.
func takeOf(t *testing.T, m *ipctest.Message) error {
	t.Helper()
	s := &Sockets{client: &Client{channel: -1}, updating: updating{id: 1, open: true, ended: make(chan error, 1)}, waiting: map[uint32]request{1: {
		open: ipc.AgentOpen{ID: 1, Proto: ipc.ProtoTCP},
		done: func(fd int, _ error) {
			if fd >= 0 {
				unix.Close(fd)
			}
		},
	}}}
	s.scanning = scanning{id: 1, sent: 1, open: true, ended: make(chan error, 1)}
	fd := -1
	if m.FD {
		var err error
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP); err != nil {
			t.Skip("needs IPv6:", err)
		}
	}
	return s.take(m.Bytes, fd)
}

// TestRecordsLeaveNothing: no descriptor that came with what was refused is left.
func TestRecordsLeaveNothing(t *testing.T) {
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := count()
	for _, m := range ipctest.Messages(ipctest.Records()) {
		_ = answerTo(t, &m)
		_ = takeOf(t, &m)
	}
	if n := count(); n > before {
		t.Errorf("%d descriptors left", n-before)
	}
}
