// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
)

// BenchmarkCalls makes calls the way translators do, by an interface, on sockets
// that nobody else touches: what the way to the kernel costs.
func BenchmarkCalls(b *testing.B) {
	var env interface {
		flow.Clock
		flow.Streams
		flow.Datagrams
		flow.GatherWriter
		flow.Failures
		flow.Options
		Read(fd int32, b []byte) (int, syscall.Errno)
	} = &Lane{}
	pair := func(typ int) (a, z int32) {
		p, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
		return int32(p[0]), int32(p[1])
	}
	buf := make([]byte, 2048)
	vec := [][]byte{buf[:64], buf[64:128]}
	d := make([]flow.Datagram, 8)
	for i := range d {
		d[i].Buf = make([]byte, 2048)
	}
	run := func(name string, typ int, f func(a, z int32)) {
		b.Run(name, func(b *testing.B) {
			a, z := pair(typ)
			b.ReportAllocs()
			for b.Loop() {
				f(a, z)
			}
		})
	}
	run("now", unix.SOCK_STREAM, func(_, _ int32) { env.Now() })
	run("write and read", unix.SOCK_STREAM, func(a, z int32) { env.Write(a, buf[:100]); env.Read(z, buf) })
	run("writev and recv", unix.SOCK_STREAM, func(a, z int32) { env.Writev(a, vec); env.Recv(z, buf, flow.MsgDontWait) })
	run("datagrams", unix.SOCK_DGRAM, func(a, z int32) {
		for range 4 {
			env.Write(a, buf[:100])
		}
		env.RecvDatagrams(z, d)
	})
	run("error", unix.SOCK_STREAM, func(a, _ int32) { env.TakeError(a) })
	run("option", unix.SOCK_STREAM, func(a, _ int32) { env.Option(a, flow.OptionSendBuffer, 65536) })
}
