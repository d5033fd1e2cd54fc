// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/test/vhost/frontend"
)

// rig is a link of rings, and a front end with a guest at the other end of them. The
// descriptors that the link asks for are looked at here, as the lane would.
type rig struct {
	t     testing.TB
	v     *vhostUser
	g     *frontend.Guest
	b     *Batch
	kicks map[int32]uint32
	mtu   int // that was told

	unknown []uint32 // requests
	short   int      // how often it was told
}

func (r *rig) WatchLink(fd int32, sub uint32) syscall.Errno {
	if _, is := r.kicks[fd]; is {
		r.t.Errorf("descriptor %d is watched already", fd)
	}
	r.kicks[fd] = sub
	return 0
}

func (r *rig) UnwatchLink(fd int32) {
	if _, is := r.kicks[fd]; !is {
		r.t.Errorf("descriptor %d is not watched", fd)
	}
	delete(r.kicks, fd)
}

// NewInflight is the broker's to do.
func (r *rig) NewInflight(int, int, int, int) error { return syscall.ENOSYS }

// SetMTU notes it.
func (r *rig) SetMTU(mtu int) { r.mtu = mtu }

// Short notes it.
func (r *rig) Short() { r.short++ }

// Unknown notes it.
func (r *rig) Unknown(request uint32) { r.unknown = append(r.unknown, request) }

// newRig negotiates. Buffers for frames to the guest have size bytes.
func newRig(t testing.TB, c frontend.Config, size int) *rig {
	t.Helper()
	conn, file, err := frontend.Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	unix.SetNonblock(fd, true)
	r := &rig{t: t, v: New(&ipc.Link{Kind: ipc.LinkVhostUser}, int32(fd), 1500, nil).(*vhostUser), b: NewBatch(), kicks: map[int32]uint32{}}
	r.v.Attach(r)
	conn.Turn = func() { r.turn() }
	if c.Protocol == 0 {
		c.Protocol = frontend.AllProtocol
	}
	var f *frontend.Frontend
	r.during(func() (err error) {
		if f, err = frontend.New(conn, c); err != nil {
			return err
		}
		if r.g, err = frontend.NewGuest(f, size); err != nil {
			return err
		}
		return f.Start()
	})
	t.Cleanup(func() {
		r.v.Close()
		f.Close()
		if len(r.kicks) != 0 {
			t.Errorf("%d descriptors are watched for ever", len(r.kicks))
		}
	})
	r.turn()
	return r
}

// during has the front end do something that it is answered for.
func (r *rig) during(f func() error) {
	r.t.Helper()
	if err := f(); err != nil {
		r.t.Fatal(err)
	}
	r.turn()
}

// turn takes what there is, and returns copies of the frames.
func (r *rig) turn() (all [][]byte) {
	for more := r.events() || r.v.Sleep() || r.v.polls(); more; more = more || r.v.Sleep() {
		var err error
		if more, err = r.v.Receive(r.b); err != nil {
			r.t.Logf("the link ends: %v", err)
			break
		}
		for _, f := range r.b.Frames {
			all = append(all, slices.Concat(append([][]byte{f.Data}, f.More...)...))
		}
		if len(r.b.Frames) == 0 && r.v.polls() && !r.v.messages {
			break // the lane would go on
		}
	}
	r.v.Flush()
	return all
}

// events gives the link what has happened.
func (r *rig) events() (receive bool) {
	fds := []unix.PollFd{{Fd: r.v.fd, Events: unix.POLLIN}}
	subs := []uint32{0}
	for fd, sub := range r.kicks {
		fds, subs = append(fds, unix.PollFd{Fd: fd, Events: unix.POLLIN}), append(subs, sub)
	}
	unix.Poll(fds, 0)
	for i := range fds {
		if fds[i].Revents == 0 {
			continue
		}
		if i > 0 {
			unix.Read(int(fds[i].Fd), make([]byte, 8))
		}
		got, _ := r.v.Ready(subs[i])
		receive = receive || got
	}
	return receive
}

// got is the next frame that the guest has received; nil: there is none.
func (r *rig) got(pair int) (header, frame []byte) {
	r.t.Helper()
	r.v.Flush()
	header, frame, err := r.g.Receive(pair, time.Millisecond)
	if err != nil && !os.IsTimeout(err) {
		r.t.Fatal(err)
	}
	return header, frame
}

// restart has a ring go on that has stopped. The descriptor for calls is the one before.
func restart(f *frontend.Frontend, i int) error {
	r, index := f.Rings[i], uint32(i)
	return errors.Join(
		f.Do(frontend.SetVringNum, frontend.U32s(index, uint32(r.Size))),
		f.Do(frontend.SetVringBase, frontend.U32s(index, uint32(r.UsedIndex()))),
		f.Do(frontend.SetVringAddr, frontend.VringAddr(index, 0, f.Mem.User(r.Desc), f.Mem.User(r.Used), f.Mem.User(r.Avail), 0)),
		f.Do(frontend.SetVringKick, frontend.U64(uint64(index)), r.KickFD),
	)
}
