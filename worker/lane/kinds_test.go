// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/ipctest"
	"aldente/worker/flow"
)

// records are such that a lane with no flow takes them.
func records() map[ipc.Kind][]byte {
	all := ipctest.Records()
	(&ipc.Opened{Token: flow.Token(flow.OwnerTCP, 1, 1)}).Encode(all[ipc.KindOpened])
	(&ipc.Switch{Token: flow.Token(flow.OwnerUDP, 1, 1)}).Encode(all[ipc.KindSwitch])
	all[ipc.KindCapture] = (&ipc.Capture{Flags: ipc.CaptureMark}).Encode() // no file header is written
	return all
}

// spareFD is a descriptor for a message that has one, or -1.
func spareFD(t *testing.T, wanted bool) int {
	t.Helper()
	if !wanted {
		return -1
	}
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestRecordsTaken: a lane takes from the broker what the table of kinds says, while it
// starts and while it runs, and ends over anything else.
func TestRecordsTaken(t *testing.T) {
	good := records()
	for _, phase := range []ipc.Phase{ipc.First, ipc.Starting} {
		for _, m := range ipctest.Messages(good) {
			if m.To != ipc.ToWorker && len(m.Bytes) != len(good[m.Kind]) {
				continue // a lane's memory is only given back with the process
			}
			err := startWith(t, &m, phase == ipc.Starting)
			if want := ipctest.Permitted(&m, ipc.ToWorker, phase); want == errors.Is(err, ipc.ErrMalformed) {
				t.Errorf("%s, in phase %d of the start: %v, the table says %v", m.Name, phase, err, want)
			}
		}
	}
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true)
	guest, advertised := w.l.guest, w.l.advertised
	for _, m := range ipctest.Messages(good) {
		if m.Kind == ipc.KindLink && ipctest.Permitted(&m, ipc.ToWorker, ipc.Running) {
			continue // it has one, and one comes in each world
		}
		fd := spareFD(t, m.FD)
		if m.Kind == ipc.KindOpened && m.FD && ipctest.Permitted(&m, ipc.ToWorker, ipc.Running) {
			w.flowBegins(flow.Token(flow.OwnerTCP, 1, 1))
		}
		send(t, w.broker, m.Bytes, fd)
		w.l.broker()
		if want := ipctest.Permitted(&m, ipc.ToWorker, ipc.Running); want == errors.Is(w.l.err, ipc.ErrMalformed) {
			t.Errorf("%s, while running: %v, the table says %v", m.Name, w.l.err, want)
		}
		w.l.err, w.l.channel.outstanding = nil, 0
		w.l.figures.owed = false // the next world has not asked
		w.l.guest, w.l.advertised = guest, advertised
		// A listener that came is none that can be accepted from.
		w.l.tcp.RemoveListener(1)
		w.l.err = nil
	}
}

// startWith starts a lane with a message, behind the configuration if that is to be,
// and returns how that ended: without the end of the start-up, if not by an error.
func startWith(t *testing.T, m *ipctest.Message, configured bool) error {
	t.Helper()
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(theirs)
	if configured {
		send(t, ours, (&ipc.Config{LinkKind: ipc.LinkTap, MaxFlows: 1}).Encode(), -1)
	}
	send(t, ours, m.Bytes, spareFD(t, m.FD))
	unix.Close(ours)
	l, err := New(theirs)
	if l != nil {
		unix.Close(int(l.poll.FD()))
	}
	return err
}
