// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"os"
	"strings"
	"time"

	"aldente/broker/foreign"
)

// Bounds on what an agent that was taken over can have us log. The runtime's
// words about a crash fit.
const (
	maxSaidLine  = 1024 // bytes, the rest of a line is dropped
	maxSaidLines = 64
)

// said passes on what the agent writes to its standard error, a pipe: the
// caller's own would be something that a guest gets hold of that looks into the
// agent. After maxSaidLines nobody reads.
func said(pipe *os.File, tell func(line string), done chan<- struct{}) {
	defer close(done)
	defer pipe.Close()
	b := bufio.NewReaderSize(pipe, maxSaidLine)
	for range maxSaidLines {
		line, err := b.ReadSlice('\n')
		if len(line) > 0 && tell != nil {
			tell(foreign.Line(strings.TrimSuffix(string(line), "\n")))
		}
		for err == bufio.ErrBufferFull {
			_, err = b.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

// heard waits until all is passed on that an agent said that has ended.
func (c *Client) heard() {
	if c.silent == nil {
		return // nobody listens
	}
	select {
	case <-c.silent:
	case <-time.After(time.Second):
	}
}
