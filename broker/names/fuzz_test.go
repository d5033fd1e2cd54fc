// SPDX-License-Identifier: Apache-2.0

package names

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/ipc/domain"
	"aldente/ipc/ipctest"
)

// reachable tells, by a plain reading of the rules of FuzzNamesServe, whether a guest may
// be told that a name has an address: one of the world's, that stands for no other.
func reachable(name string, a netip.Addr) bool {
	if name != "pypi.test" && !strings.HasSuffix(name, ".hosted.test") {
		return false
	}
	if a.Is4() {
		for _, p := range []string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
			"192.0.0.192/32", "168.63.129.16/32", "100.100.100.200/32", "192.0.2.2/32", "224.0.0.0/4", "255.255.255.255/32"} {
			if netip.MustParsePrefix(p).Contains(a) {
				return false
			}
		}
		return true
	}
	// Of those that may become another address on the way the rules' own tests tell.
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && !netip.MustParsePrefix("fc00::/7").Contains(a)
}

// FuzzNamesServe has a process send one message of anything, or note it. The broker answers what is a
// request, in order, with sockets to the configured resolvers alone, and grants no address
// that a rule denies nor any to a name that none allows; or it gives the process up as
// malformed. It keeps no descriptor.
func FuzzNamesServe(f *testing.F) {
	for _, rec := range ipctest.Records() {
		fuzz.Add(f, rec)
	}
	for _, b := range [][]byte{
		named("pypi.test", "198.51.100.1", "10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2001:db8::1", "fe80::1"),
		named("a.hosted.test", "169.254.169.254", "198.51.100.2"), named("hosted.test", "198.51.100.2"), named("A.hosted.test", "198.51.100.2"),
		bytes.Repeat((&ipc.Dial{Seq: 1, Proto: ipc.ProtoUDP}).Encode(), ipc.MaxBatch), (&ipc.Dial{Seq: 2, Resolver: 2, Proto: ipc.ProtoTCP}).Encode(),
		append((&ipc.Dial{Seq: 1, Proto: ipc.ProtoUDP}).Encode(), (&ipc.Dial{Seq: 2, Resolver: 2, Proto: ipc.ProtoTCP}).Encode()...),
		{1, 2, 3},
	} {
		fuzz.Add(f, b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > ipc.MaxRecord {
			return
		}
		for _, note := range []bool{false, true} {
			before := descriptors(t)
			r := newRig(t, rules(t, "deny private", "deny metadata", "deny host", "deny link-local", "allow pypi.test:443", "allow *.hosted.test", "deny any"), "192.0.2.53", "2001:db8::53")
			r.start()
			if note {
				if err := r.note(b); err != nil {
					t.Fatal(err)
				}
			} else {
				r.say(b, -1)
			}
			unix.Shutdown(r.control, unix.SHUT_WR)
			err := r.Serve(r.broker)
			if !errors.Is(err, io.EOF) && !errors.Is(err, ipc.ErrMalformed) {
				t.Fatal(err)
			}
			unix.Shutdown(r.broker, unix.SHUT_WR)
			n := r.answers(b)
			want := requests(b)
			if note && ipc.KindOf(b) != ipc.NamesKindNamed {
				want = 0
				if errors.Is(err, io.EOF) {
					t.Fatal("a note that is none, and it goes on")
				}
			}
			if errors.Is(err, io.EOF) && n != want || n > want {
				t.Fatalf("%d answers to %d requests, %v", n, want, err)
			}
			for _, d := range r.dialled {
				if _, to, _ := strings.Cut(d, " "); to != "192.0.2.53" && to != "2001:db8::53" {
					t.Fatalf("a socket to %s", to)
				}
			}
			for _, fd := range []int{r.control, r.broker, r.notes} {
				unix.Close(fd)
			}
			r.control, r.broker, r.notes = -1, -1, -1
			r.Close()
			if after := descriptors(t); after > before {
				t.Fatalf("%d descriptors are left", after-before)
			}
		}
	})
}

// requests is how many answers a message is to have, at most.
func requests(b []byte) int {
	switch ipc.KindOf(b) {
	case ipc.NamesKindDial:
		return len(b) / ipc.DialSize
	case ipc.NamesKindNamed:
		return 1
	}
	return 0
}

// answers reads all answers and looks at what they grant.
func (r *rig) answers(asked []byte) (n int) {
	r.t.Helper()
	buf := make([]byte, ipc.MaxRecord)
	for ; ; n++ {
		k, fd, err := ipc.Receive(r.control, buf, 0)
		if err != nil {
			return n
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		kind, err := ipc.ToNames.Check(buf[:k], fd >= 0, ipc.Running)
		if err != nil {
			r.t.Fatal(err)
		}
		if kind != ipc.NamesKindGranted {
			continue
		}
		var g ipc.Granted
		var q ipc.Named
		if err := errors.Join(g.Decode(buf[:k]), q.Decode(asked)); err != nil || g.Seq != q.Seq {
			r.t.Fatalf("%+v answers %x: %v", g, asked, err)
		}
		if name, err := domain.Parse(q.Name.String()); err != nil || string(name) != q.Name.String() || g.Mask>>q.Count != 0 && q.Count < 64 {
			r.t.Fatalf("%#x of %d addresses of %q", g.Mask, q.Count, q.Name.String())
		}
		for i := range int(q.Count) {
			if a := netip.AddrFrom16(q.Addr[i]).Unmap(); g.Mask>>i&1 != 0 && !reachable(q.Name.String(), a) {
				r.t.Fatalf("%s is granted %v", q.Name.String(), a)
			}
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
