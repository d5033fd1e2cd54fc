// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"slices"

	"aldente/broker/inet"
	"aldente/broker/service"
)

// UsePassed has listeners that are opened from now on be those sockets of TCP, where they are
// bound to the same, instead of new ones.
func (f *Factory) UsePassed(all []service.Socket) { f.given = all }

// NotUsed are those of UsePassed that no listener is, so far. From then on none will be.
func (f *Factory) NotUsed() []service.Socket {
	left := f.given
	f.given = nil
	return left
}

// givenAt takes the socket that is bound as a listener is to be; nil: there is none. Before
// the first listener may change nobody else does this.
func (f *Factory) givenAt(l *inet.Listener) *service.Socket {
	i := slices.IndexFunc(f.given, func(s service.Socket) bool {
		return s.At == l.At && s.Dual == l.Dual && s.Device == l.Device
	})
	if i < 0 {
		return nil
	}
	s := f.given[i]
	f.given = slices.Delete(slices.Clone(f.given), i, i+1)
	return &s
}
