// SPDX-License-Identifier: Apache-2.0

package test

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"aldente/test/netlab"
)

// watched is a capture that goes on.
type watched struct {
	t    *testing.T
	file string
	proc *netlab.Proc
}

// watch has our client capture to a file, and waits until it has begun.
func watch(t *testing.T, lab *netlab.Lab, g *netlab.Guest, args ...string) *watched {
	t.Helper()
	w := &watched{t: t, file: filepath.Join(openDir(t), "capture.pcapng")}
	w.proc = lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: append(
		[]string{filepath.Join(netlab.Stage(), "aldentectl"), "capture", "--pid", strconv.Itoa(g.Proc.PID), "-w", w.file}, args...)})
	if !eventually(10*time.Second, func() bool { st, err := os.Stat(w.file); return err == nil && st.Size() > 0 || w.proc.Exited() }) || w.proc.Exited() {
		t.Fatalf("no capture\n%s", w.proc.Output())
	}
	return w
}

// caught is a frame that was captured.
type caught struct {
	gopacket.Packet
	outbound bool
	comment  string
	lost     uint64
}

// end interrupts the client and returns all frames.
func (w *watched) end() []caught {
	w.t.Helper()
	_ = w.proc.Signal(syscall.SIGINT)
	if st := w.proc.Wait(); st != 0 {
		w.t.Fatalf("status %d\n%s", st, w.proc.Output())
	}
	all, _ := w.frames()
	return all
}

// frames reads the file, which has to be whole, and the last statistics in it.
func (w *watched) frames() (all []caught, last *pcapgo.NgInterfaceStatistics) {
	w.t.Helper()
	f, err := os.Open(w.file)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	o := pcapgo.DefaultNgReaderOptions
	o.StatisticsCallback = func(_ int, s pcapgo.NgInterfaceStatistics) { last = &s }
	r, err := pcapgo.NewNgReader(f, o)
	if err != nil {
		w.t.Fatal(err)
	}
	for {
		data, info, more, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			return all, last
		}
		if err != nil || more.Flags == nil || time.Since(info.Timestamp).Abs() > time.Hour {
			w.t.Fatalf("after %d frames: %v, %+v, %+v", len(all), err, info, more)
		}
		c := caught{Packet: gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default),
			outbound: more.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound, comment: strings.Join(more.Comments, "; ")}
		if more.DropCount != nil {
			c.lost = *more.DropCount
		}
		all = append(all, c)
	}
}

// has tells whether there is a frame of a layer's, one way, with exactly a comment.
func has(all []caught, outbound bool, layer gopacket.LayerType, comment string) bool {
	return slices.ContainsFunc(all, func(c caught) bool {
		return c.outbound == outbound && c.comment == comment && c.Layer(layer) != nil
	})
}

// written is how large the file is.
func (w *watched) written() (int64, error) {
	st, err := os.Stat(w.file)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
