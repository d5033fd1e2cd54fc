// SPDX-License-Identifier: Apache-2.0

//go:build captive && !race

package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
	"aldente/policy/captive"
	"aldente/policy/stage"
)

// The captive is names with its loop replaced by a script. It goes through the real
// lock-down, then does what its script says, one word after the other, and reports how each
// ended, if it still can:
//
//	attempt=NAME            what captured code might try, see policy/captive
//	skip=LAYER              leave out a layer, to try those behind it
//	record=HEX              any bytes to the broker
//	dial=RESOLVER,PROTO     a socket to a resolver; says how it was answered
//	hold=N,RESOLVER         N of them by UDP, none closed
//	named=NAME,ADDR…        says which addresses of a name are granted
//	flood=N,NAME,ADDR…      the same as fast as it goes, N times
//	noted=N,NAME,ADDR…      notes it N times, as far as there is room, and waits for nobody
//	note=HEX                notes any bytes
//	refused=N               N names that are refused
//	counted=N               N reports of what was counted, all of it
//	stage=NAME              says that the next flow that is to be looked at has a hello for
//	                        it; says whether its socket came, which it keeps
//	passed=N                says of that flow that N bytes were written
//	unstaged=N,NAME         says both of N flows that nobody has had it look at
//	relay=RESULT            waits for a flow that is to go by the proxy, and says that its answer was so
//	relayed=ID,RESULT       says so of a flow that there may not be
//	sleep=DURATION
//	report=log              say it in the log, not on the control channel
type scripted struct {
	control int
	notes   int // the channel for notes
	held    captive.Held
	script  []string
	log     bool
	staged  uint32 // the flow that it was to look at last
}

func prepare(control, _ int) (resolver, error) {
	args, err := policy.ParseArguments(os.Args)
	if err != nil {
		return nil, err
	}
	s := &scripted{control: control, held: captive.Nothing(), script: strings.Fields(args.Extra)}
	s.held.Channel, s.held.Log = control, policy.LogFD
	s.log = slices.Contains(s.script, "report=log")
	var secret [16]byte
	_, _ = rand.Read(secret[:]) // the vDSO maps its state now
	for {
		kind, _, fd, err := s.receive()
		if err != nil {
			return nil, err
		}
		if kind == ipc.NamesKindStart {
			s.notes = fd
			return s, nil
		}
		s.hold(fd)
	}
}

// receive waits for a record. The channel does not wait by itself.
func (s *scripted) receive() (kind ipc.Kind, rec []byte, fd int, err error) {
	buf := make([]byte, ipc.MaxRecord)
	for {
		n, fd, err := ipc.Receive(s.control, buf, 0)
		if err == unix.EAGAIN {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			return 0, nil, -1, err
		}
		return ipc.KindOf(buf[:n]), buf[:n], fd, nil
	}
}

// hold keeps a descriptor to try things with: the first is of UDP, the next of TCP.
func (s *scripted) hold(fd int) {
	switch {
	case fd < 0:
	case s.held.Flow < 0:
		s.held.Flow = fd
	default:
		s.held.Stream = fd
	}
}

// answer waits for a record of a kind, and holds or closes what comes with others.
func (s *scripted) answer(want ipc.Kind) (rec []byte, fd int, err error) {
	for {
		kind, rec, fd, err := s.receive()
		if err != nil || kind == want {
			return rec, fd, err
		}
		s.hold(fd)
	}
}

func (s *scripted) Run() error {
	if err := s.send(ipc.Empty(ipc.NamesKindReady)); err != nil {
		return err
	}
	for _, word := range s.script {
		s.say(word, s.do(word))
	}
	for {
		if _, _, fd, err := s.receive(); err != nil {
			return nil
		} else if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (s *scripted) send(rec []byte) error {
	for {
		_, err := unix.Write(s.control, rec)
		if err != unix.EAGAIN {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// do executes one word; the result is empty for those that have none.
func (s *scripted) do(word string) string {
	key, value, _ := strings.Cut(word, "=")
	f := strings.Split(value, ",")
	n, _ := strconv.Atoi(f[0])
	switch key {
	case "attempt":
		return captive.Try(value, s.held)
	case "sleep":
		d, _ := time.ParseDuration(value)
		time.Sleep(d)
		return ""
	case "record":
		return told(s.send(unhex(value)))
	case "note":
		_, err := unix.Write(s.notes, unhex(value))
		return told(err)
	case "noted":
		rec, err := namedRecord(f[1:])
		for range n {
			_, _ = unix.Write(s.notes, rec)
		}
		return told(err)
	case "dial":
		proto := uint8(ipc.ProtoUDP)
		if f[1] == "tcp" {
			proto = ipc.ProtoTCP
		}
		_, text := s.dial(uint8(n), proto)
		return text
	case "hold":
		resolver, _ := strconv.Atoi(f[1])
		for held := range n {
			if fd, text := s.dial(uint8(resolver), ipc.ProtoUDP); fd < 0 {
				return fmt.Sprintf("%d held, then %s", held, text)
			}
		}
		return fmt.Sprintf("%d held", n)
	case "named":
		mask, err := s.named(f)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("granted %#x", mask)
	case "flood":
		for range n {
			if _, err := s.named(f[1:]); err != nil {
				return err.Error()
			}
		}
		return "done"
	case "refused":
		for i := range n {
			name, _ := ipc.MakeName(fmt.Sprintf("n%d.example", i))
			if err := s.send((&ipc.Refused{Type: 1, Why: ipc.RefusedByRule, Name: name}).Encode()); err != nil {
				return err.Error()
			}
		}
		return "sent"
	case "stage":
		return s.stage(f[0])
	case "passed":
		return told(s.send((&ipc.Passed{ID: s.staged, Count: uint32(n)}).Encode()))
	case "unstaged":
		for i := range n {
			r := ipc.Staged{ID: s.staged + 1 + uint32(i), Found: ipc.FoundName}
			r.Name, _ = ipc.MakeName(f[1])
			if err := errors.Join(s.send(r.Encode()), s.send((&ipc.Passed{ID: r.ID, Count: 5}).Encode())); err != nil {
				return err.Error()
			}
		}
		return "sent"
	case "relay":
		return s.relay(uint8(n))
	case "relayed":
		result, _ := strconv.Atoi(f[1])
		return told(s.send((&ipc.Relayed{ID: uint32(n), Result: uint8(result)}).Encode()))
	case "counted":
		for range n {
			most := ^uint64(0)
			if err := s.send((&ipc.Counted{Questions: most, Refused: most, Cached: most, Asked: most, Failed: most, Forged: most}).Encode()); err != nil {
				return err.Error()
			}
		}
		return "sent"
	}
	return ""
}

// stage says what the next flow that is to be looked at has begun with.
func (s *scripted) stage(name string) string {
	rec, pair, err := s.answer(ipc.NamesKindStage)
	var of ipc.Stage
	if err == nil {
		err = of.Decode(rec)
	}
	r := ipc.Staged{ID: of.ID, Found: ipc.FoundName}
	r.Name, _ = ipc.MakeName(name)
	if err == nil {
		err = s.send(r.Encode())
	}
	if err != nil {
		return err.Error()
	}
	s.staged = of.ID
	for {
		kind, _, fd, err := s.receive()
		switch {
		case err != nil:
			return err.Error()
		case kind == ipc.NamesKindStageSocket:
			s.held.Stream = fd
			return "socket"
		case kind == ipc.NamesKindStageEnd:
			unix.Close(pair)
			return "ended"
		}
		s.hold(fd)
	}
}

func told(err error) string {
	if err != nil {
		return err.Error()
	}
	return "sent"
}

// dial asks for a socket to a resolver, and writes to what it gets.
func (s *scripted) dial(resolver, proto uint8) (int, string) {
	if err := s.send((&ipc.Dial{Seq: 1, Resolver: resolver, Proto: proto}).Encode()); err != nil {
		return -1, err.Error()
	}
	rec, fd, err := s.answer(ipc.NamesKindUpstream)
	if err != nil {
		return -1, err.Error()
	}
	var u ipc.Upstream
	if err := u.Decode(rec); err != nil {
		return -1, err.Error()
	}
	if fd < 0 {
		return fd, unix.ErrnoName(unix.Errno(u.Errno))
	}
	_, err = unix.Write(fd, []byte("captive"))
	if errors.Is(err, unix.EAGAIN) {
		err = nil // a connection on its way
	}
	return fd, fmt.Sprintf("opened, written: %v", err)
}

// relay claims that the proxy, which is not asked, has answered for the next flow.
func (s *scripted) relay(result uint8) string {
	rec, fd, err := s.answer(ipc.NamesKindRelay)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	var r ipc.Relay
	if err := r.Decode(rec); err != nil {
		return err.Error()
	}
	if err := s.send((&ipc.Relayed{ID: r.ID, Result: result}).Encode()); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("claimed for %v", netip.AddrPortFrom(netip.AddrFrom16(r.Addr).Unmap(), r.Port))
}

// unhex is what hexadecimal digits stand for.
func unhex(text string) []byte {
	b := make([]byte, len(text)/2)
	for i := range b {
		v, _ := strconv.ParseUint(text[2*i:2*i+2], 16, 8)
		b[i] = byte(v)
	}
	return b
}

// namedRecord is the record that says which addresses a name has.
func namedRecord(f []string) ([]byte, error) {
	n := ipc.Named{Seq: 1, TTL: 3600, Type: 1}
	var err error
	if n.Name, err = ipc.MakeName(f[0]); err != nil {
		return nil, err
	}
	for _, text := range f[1:] {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		n.Addr[n.Count] = a.As16()
		n.Count++
	}
	rec := make([]byte, ipc.NamedSize)
	n.Encode(rec)
	return rec, nil
}

// named asks which addresses of a name are granted.
func (s *scripted) named(f []string) (uint64, error) {
	rec, err := namedRecord(f)
	if err != nil {
		return 0, err
	}
	if err := s.send(rec); err != nil {
		return 0, err
	}
	rec, _, err = s.answer(ipc.NamesKindGranted)
	if err != nil {
		return 0, err
	}
	var g ipc.Granted
	err = g.Decode(rec)
	return g.Mask, err
}

// say tells how a word ended: alone on the control channel, behind the word in the log.
func (s *scripted) say(word, result string) {
	switch {
	case result == "":
	case s.log:
		stage.Logf(stage.LevelWarning, "captive: %s: %s", word, result)
	default:
		_ = s.send([]byte(result))
	}
}
