// SPDX-License-Identifier: Apache-2.0

// Package frontend stands in for a vhost-user front-end, as QEMU is one: it makes
// the guest's memory and rings, tells a back-end of them, and moves frames. A test
// uses it with frames of its own (Guest), or with a tap (Start), so that the kernel
// of a network namespace is the guest. What a front-end should not do can be done
// as well, by Conn and Ring.
package frontend

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Config says what a front-end asks for.
type Config struct {
	Features uint64   // of virtio: what is offered of these is negotiated
	Protocol uint64   // of the protocol, likewise
	Pairs    int      // of queues, 0: one
	Ring     uint16   // entries of each, 0: 256
	Sizes    []uint64 // of memory regions, in bytes; nil: two of 32 MiB
	Hole     uint64   // between two of them
}

// Frontend is a front-end with its memory and rings.
type Frontend struct {
	*Conn
	Config
	Mem   *Memory // of the guest
	Rings []*Ring // receive, transmit, receive, ...

	Offered         uint64 // features of virtio
	OfferedProtocol uint64 // features of the protocol
	Features        uint64 // of virtio, as negotiated
	Protocol        uint64 // of the protocol, as negotiated
	MaxPairs        int    // as the back-end says

	Before func() error // if set: what Start does after it has told of the memory
}

// New negotiates with the back-end and makes memory and rings. Close ends it.
func New(c *Conn, cfg Config) (*Frontend, error) {
	f := &Frontend{Conn: c, Config: cfg}
	if f.Pairs == 0 {
		f.Pairs = 1
	}
	if f.Ring == 0 {
		f.Ring = 256
	}
	if f.Sizes == nil {
		f.Sizes = []uint64{32 << 20, 32 << 20}
	}
	err := f.negotiate()
	if err == nil {
		f.Mem, err = NewMemory(f.Hole, f.Sizes...)
	}
	for range 2 * f.Pairs {
		if err == nil {
			var r *Ring
			if r, err = NewRing(f.Mem, f.Ring, f.Features); err == nil {
				f.Rings = append(f.Rings, r)
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close closes the connection and gives memory and rings back.
func (f *Frontend) Close() {
	f.Conn.Close()
	for _, r := range f.Rings {
		r.Close()
	}
	f.Rings = nil
	if f.Mem != nil {
		f.Mem.Close()
		f.Mem = nil
	}
}

// negotiate does what comes before the guest's driver runs.
func (f *Frontend) negotiate() error {
	m, err := f.Ask(GetFeatures, nil)
	if err != nil {
		return err
	}
	f.Offered = m.U64()
	f.Features = f.Offered & f.Config.Features
	f.Protocol, f.MaxPairs = 0, 1
	if f.Features&FProtocolFeatures != 0 {
		if m, err = f.Ask(GetProtocolFeatures, nil); err != nil {
			return err
		}
		f.OfferedProtocol = m.U64()
		f.Protocol = f.OfferedProtocol & f.Config.Protocol
		if err := f.Send(SetProtocolFeatures, 0, U64(f.Protocol)); err != nil {
			return err
		}
	}
	if f.Protocol&PMQ != 0 {
		if m, err = f.Ask(GetQueueNum, nil); err != nil {
			return err
		}
		f.MaxPairs = int(m.U64())
	}
	if f.Pairs > f.MaxPairs {
		return fmt.Errorf("%d queue pairs are wanted, the back-end has %d", f.Pairs, f.MaxPairs)
	}
	return f.Do(SetOwner, nil)
}

// Do sends a request that has no reply of its own, and waits for the back-end's
// word if that was negotiated.
func (f *Frontend) Do(request uint32, payload []byte, fds ...int) error {
	if f.Protocol&PReplyAck != 0 {
		return f.Tell(request, payload, fds...)
	}
	return f.Send(request, 0, payload, fds...)
}

// HeaderLen is the length of the header before each frame.
func (f *Frontend) HeaderLen() int {
	if f.Features&(FVersion1|FMrgRxbuf) != 0 {
		return 12
	}
	return 10
}

// Start tells the back-end of features, memory and rings, and enables them.
func (f *Frontend) Start() error {
	if err := f.Do(SetFeatures, U64(f.Features)); err != nil {
		return err
	}
	if err := f.ShareMemory(); err != nil {
		return err
	}
	if f.Before != nil {
		if err := f.Before(); err != nil {
			return err
		}
	}
	for i := range f.Rings {
		if err := f.StartRing(i); err != nil {
			return err
		}
	}
	return f.Enable(true)
}

// ShareMemory tells of all regions: in slots where that was negotiated.
func (f *Frontend) ShareMemory() error {
	if f.Protocol&PConfigureMemSlots != 0 {
		for _, r := range f.Mem.Regions {
			if err := f.AddRegion(r); err != nil {
				return err
			}
		}
		return nil
	}
	b := U32s(uint32(len(f.Mem.Regions)), 0)
	var fds []int
	for _, r := range f.Mem.Regions {
		b, fds = append(b, f.Mem.Describe(r)...), append(fds, r.FD)
	}
	return f.Do(SetMemTable, b, fds...)
}

// AddRegion adds a region to the back-end's memory.
func (f *Frontend) AddRegion(r *Region) error {
	return f.Do(AddMemReg, append(U64(0), f.Mem.Describe(r)...), r.FD)
}

// RemoveRegion takes it away.
func (f *Frontend) RemoveRegion(r *Region) error {
	return f.Do(RemMemReg, append(U64(0), f.Mem.Describe(r)...))
}

// StartRing tells of the ring of that index, which goes on where the device's side
// of it stands.
func (f *Frontend) StartRing(i int) error {
	r, index := f.Rings[i], uint32(i)
	addr := VringAddr(index, 0, f.Mem.User(r.Desc), f.Mem.User(r.Used), f.Mem.User(r.Avail), 0)
	for _, tell := range []struct {
		request uint32
		payload []byte
		fds     []int
	}{
		{SetVringNum, U32s(index, uint32(r.Size)), nil},
		{SetVringBase, U32s(index, uint32(r.UsedIndex())), nil},
		{SetVringAddr, addr, nil},
		{SetVringKick, U64(uint64(index)), []int{r.KickFD}},
		{SetVringCall, U64(uint64(index)), []int{r.CallFD}},
	} {
		if err := f.Do(tell.request, tell.payload, tell.fds...); err != nil {
			return err
		}
	}
	return nil
}

// Enable enables or disables all rings. Without protocol features they are enabled
// from the start.
func (f *Frontend) Enable(on bool) error {
	for i := range f.Rings {
		if err := f.EnableRing(i, on); err != nil {
			return err
		}
	}
	return nil
}

// EnableRing is Enable for one.
func (f *Frontend) EnableRing(i int, on bool) error {
	if f.Features&FProtocolFeatures == 0 {
		return nil
	}
	v := uint32(0)
	if on {
		v = 1
	}
	return f.Do(SetVringEnable, U32s(uint32(i), v))
}

// StopRing stops a ring and returns the index at which the device would have gone on.
func (f *Frontend) StopRing(i int) (base uint16, err error) {
	m, err := f.Ask(GetVringBase, U32s(uint32(i), 0))
	if err != nil {
		return 0, err
	}
	if len(m.Payload) != 8 || binary.LittleEndian.Uint32(m.Payload) != uint32(i) {
		return 0, fmt.Errorf("base of ring %d: %x", i, m.Payload)
	}
	return uint16(binary.LittleEndian.Uint32(m.Payload[4:])), nil
}

// Stop stops all rings.
func (f *Frontend) Stop() error {
	for i := range f.Rings {
		if _, err := f.StopRing(i); err != nil {
			return err
		}
	}
	return nil
}

// Reconnect goes on with memory and rings as they are, on a new connection: the
// back-end has lost what it had.
func (f *Frontend) Reconnect(c *Conn) error {
	f.Conn.Close()
	f.Conn = c
	old := f.Features
	if err := f.negotiate(); err != nil {
		return err
	}
	if f.Features != old {
		return fmt.Errorf("features %#x were negotiated, now %#x", old, f.Features)
	}
	return f.Start()
}

// DeviceConfig reads n bytes of the device's configuration: the hardware address, u16 status, u16
// queue pairs, u16 MTU.
func (f *Frontend) DeviceConfig(n uint32) ([]byte, error) {
	m, err := f.Ask(GetConfig, append(U32s(0, n, 0), make([]byte, n)...))
	if err != nil {
		return nil, err
	}
	if len(m.Payload) != int(12+n) {
		return nil, fmt.Errorf("configuration: %w: %x", ErrRefused, m.Payload)
	}
	return m.Payload[12:], nil
}

// LogDirty has the back-end mark pages that it writes to, in a log that is
// returned: a bit for each page of 4,096 bytes. Features must have FLogAll.
func (f *Frontend) LogDirty() (log []byte, err error) {
	last := f.Mem.Regions[len(f.Mem.Regions)-1]
	size := ((last.Guest+last.Size)/page/8 + page) &^ (page - 1)
	fd, err := Memfd(size)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if log, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	if _, err := f.Ask(SetLogBase, slices.Concat(U64(size), U64(0)), fd); err != nil {
		return nil, err
	}
	return log, f.Do(SetFeatures, U64(f.Features))
}

// Inflight asks for a region in which the back-end keeps what it has in hand, and
// hands it back: over a new connection with the file of the last one.
func (f *Frontend) Inflight(file int, size uint64) (int, uint64, error) {
	queues := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, uint16(len(f.Rings))), f.Ring)
	if file < 0 {
		m, err := f.Ask(GetInflightFD, slices.Concat(U64(0), U64(0), queues))
		if err != nil {
			return -1, 0, err
		}
		if len(m.FDs) != 1 || len(m.Payload) != 20 {
			return -1, 0, fmt.Errorf("in-flight region: %w: %d descriptors, %x", ErrRefused, len(m.FDs), m.Payload)
		}
		file, size = m.FDs[0], binary.LittleEndian.Uint64(m.Payload)
	}
	return file, size, f.Do(SetInflightFD, slices.Concat(U64(size), U64(0), queues), file)
}
