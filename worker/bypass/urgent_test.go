// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUrgentSpliced sends urgent bytes within a stream that is spliced, and one
// shortly before its end: all bytes arrive in order, both with a sender that goes
// on and with one that waits for an answer.
func TestUrgentSpliced(t *testing.T) {
	const pieces = 40
	piece := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 60_000+n) }
	for _, pipes := range []bool{true, false} {
		for _, answers := range []bool{true, false} {
			t.Run(fmt.Sprintf("pipes=%v/answers=%v", pipes, answers), func(t *testing.T) {
				l := newLane(t)
				l.noPipe = !pipes
				c := l.connect("127.0.0.1")
				defer c.close()
				sent := make(chan error, 1)
				go func() {
					sent <- sendUrgent(c.client, pieces, piece, answers)
				}()
				got := make(chan error, 1)
				go func() {
					got <- func() error {
						for n := range pieces {
							b := make([]byte, len(piece(n)))
							if _, err := io.ReadFull(fd(c.server), b); err != nil || !bytes.Equal(b, piece(n)) {
								return fmt.Errorf("piece %d: %v", n, err)
							}
							if !answers {
								time.Sleep(time.Millisecond) // have some wait in the sockets
								continue
							}
							if _, err := fd(c.server).Write(b[:1]); err != nil {
								return err
							}
						}
						if n, err := fd(c.server).Read(make([]byte, 1)); n != 0 || err != io.EOF {
							return fmt.Errorf("%d bytes behind the end, %v", n, err)
						}
						return nil
					}()
				}()
				for _, ch := range []chan error{sent, got} {
					var err error
					l.until("end", func() bool {
						select {
						case err = <-ch:
							return true
						default:
							return false
						}
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// sendUrgent sends pieces of which each third ends in an urgent byte, then the
// stream's end.
func sendUrgent(f, pieces int, piece func(int) []byte, answers bool) error {
	for n := range pieces {
		b := piece(n)
		flags := 0
		if n%3 == pieces%3 {
			flags = unix.MSG_OOB
		}
		for len(b) > 0 {
			k, err := unix.SendmsgN(f, b, nil, nil, flags)
			if err != nil && err != unix.EINTR {
				return err
			}
			b = b[max(k, 0):]
		}
		if answers {
			if _, err := io.ReadFull(fd(f), make([]byte, 1)); err != nil {
				return err
			}
		}
	}
	return unix.Shutdown(f, unix.SHUT_WR)
}
