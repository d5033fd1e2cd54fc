// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"io"
)

// answerMagic is what an answer begins with. passt's server closes the connection
// instead, and passt's client does so before it would read one.
const answerMagic = "aldente\x00"

// maxReason bounds what an answer says, in bytes.
const maxReason = 4096

// Kinds of answers.
const (
	answerDone = iota
	answerRefused
)

// AppendAnswer appends what our server says to the tables that it was sent: that
// they are in force, or why all is as it was.
func AppendAnswer(b []byte, refused error) []byte {
	kind, reason := uint32(answerDone), ""
	if refused != nil {
		kind, reason = answerRefused, refused.Error()
		reason = reason[:min(len(reason), maxReason)]
	}
	b = append(b, answerMagic...)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(reason)))
	return append(b, reason...)
}

// ErrUnanswered is what a client learns from a server that does not answer, such as
// passt's.
var ErrUnanswered = errors.New("it does not say whether the ports could be had")

// ReadAnswer reads an answer: nil if the tables are in force, a *Refusal if not,
// ErrUnanswered if there is none.
func ReadAnswer(r io.Reader) error {
	var head [len(answerMagic) + 8]byte
	if n, err := io.ReadFull(r, head[:]); err != nil {
		if n == 0 {
			return ErrUnanswered
		}
		return cut(err)
	}
	rest := head[len(answerMagic):]
	kind, size := number(rest), number(rest[4:])
	if string(head[:len(answerMagic)]) != answerMagic || kind > answerRefused || size > maxReason || kind == answerDone && size != 0 {
		return malformed("no answer to tables of rules")
	}
	if kind == answerDone {
		return nil
	}
	reason := make([]byte, size)
	if _, err := io.ReadFull(r, reason); err != nil {
		return cut(err)
	}
	return &Refusal{string(reason)}
}

// Refusal is why a server has left all rules as they were, in its own words, which
// may hold anything.
type Refusal struct{ Reason string }

func (e *Refusal) Error() string { return e.Reason }
