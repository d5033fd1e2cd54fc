// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"sync/atomic"
	"time"
)

// nap is how long the runtime's monitor thread may sleep under Awake.
const nap = 10 * time.Millisecond

// Awake keeps the runtime's monitor thread from sleeping long until the function
// that it returns is called. Whoever makes system calls on all threads wants it.
//
// Such calls stop the world, and so they interrupt goroutines that wait in
// system calls of the kind that is not resumed, as ppoll(2). These go back into
// their calls while the world is being stopped for the next one. Since Go 1.26
// (seen with 1.26.8) one that does so between the runtime's two looks at it
// keeps its processor, for which the other waits. Only the monitor would take it
// away, and that sleeps: for a minute when no timer is pending.
//
// The timer that has fired and waits to be set again is none, if the world is
// stopped in that moment. So there is another behind it, which is put off each
// time and never fires.
func Awake() (done func()) {
	var over atomic.Bool
	var t *time.Timer
	behind := time.AfterFunc(time.Second, func() {})
	t = time.AfterFunc(time.Hour, func() {
		if !over.Load() {
			behind.Reset(time.Second)
			t.Reset(nap)
		}
	})
	t.Reset(nap)
	return func() {
		over.Store(true)
		t.Stop()
		behind.Stop()
	}
}
