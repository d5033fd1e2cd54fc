// SPDX-License-Identifier: Apache-2.0

// Package hostfwd is what is said on slirp4netns's API socket (-a): one request, an
// answer to it, both JSON. Its words are those that callers know.
package hostfwd

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"unicode/utf8"
)

// MaxRequest is how long a request may be, in bytes, and one less.
const MaxRequest = 4096

// Forward is a port of the host's that is forwarded to the guest, as clients see it.
type Forward struct {
	ID        int    `json:"id"`         // that it is removed by, from 1
	Proto     string `json:"proto"`      // "tcp" or "udp"
	HostAddr  string `json:"host_addr"`  // IPv4
	HostPort  int    `json:"host_port"`  // 1 to 65535
	GuestAddr string `json:"guest_addr"` // IPv4
	GuestPort int    `json:"guest_port"` // 1 to 65535
}

// Command is what a request asks for.
type Command int

// Commands.
const (
	Add    Command = iota // Request.Forward, without ID
	List                  // of all
	Remove                // that of Request.ID
)

// Request is a request that makes sense.
type Request struct {
	Command Command    // what to do
	Forward Forward    // Add; empty GuestAddr: the guest's own
	Host    netip.Addr // Add: Forward.HostAddr
	Guest   netip.Addr // Add: Forward.GuestAddr, invalid: the guest's own
	ID      int        // Remove
}

// ErrMore means that a request is not complete, and that there may be more of it.
var ErrMore = errors.New("the request is not complete")

// BadRequest is a request that is answered by an error. It is what the client is told.
type BadRequest string

func (e BadRequest) Error() string { return string(e) }

// What clients are told.
const (
	TooLarge     BadRequest = "too large message"
	notJSON      BadRequest = "cannot parse JSON"
	noObject     BadRequest = "json_object() failed"
	noExecute    BadRequest = "no execute found"
	unknown      BadRequest = "unknown execute"
	badProto     BadRequest = "add_hostfwd: bad arguments.proto"
	badHost      BadRequest = "add_hostfwd: bad arguments.host_addr"
	badHostPort  BadRequest = "add_hostfwd: bad arguments.host_port"
	badGuest     BadRequest = "add_hostfwd: bad arguments.guest_addr"
	badGuestPort BadRequest = "add_hostfwd: bad arguments.guest_port"
	badID        BadRequest = "remove_hostfwd: bad arguments.id"

	// AddFailed is for a port that cannot be had.
	AddFailed BadRequest = "add_hostfwd: slirp_add_hostfwd failed"
	// NoSuchID is for one that is not forwarded.
	NoSuchID = badID
)

// Parse reads a request. What is behind it does not count. An error is a BadRequest, or
// ErrMore unless the request has ended.
func Parse(b []byte, ended bool) (*Request, error) {
	if len(b) >= MaxRequest {
		return nil, TooLarge
	}
	v, err := value(json.NewDecoder(bytes.NewReader(b)))
	switch {
	case (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) && !ended:
		return nil, ErrMore
	case err != nil || !utf8.Valid(b):
		return nil, notJSON
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, noObject
	}
	execute, ok := o["execute"].(string)
	if !ok {
		return nil, noExecute
	}
	args, _ := o["arguments"].(map[string]any)
	switch execute {
	case "add_hostfwd":
		return parseAdd(args)
	case "list_hostfwd":
		return &Request{Command: List}, nil
	case "remove_hostfwd":
		id, _ := args["id"].(float64)
		if id < 1 || id > 1<<31-1 {
			return nil, badID
		}
		return &Request{Command: Remove, ID: int(id)}, nil
	}
	return nil, unknown
}

func parseAdd(args map[string]any) (*Request, error) {
	r := &Request{Command: Add}
	f := &r.Forward
	text := func(name string) string {
		s, _ := args[name].(string)
		return s
	}
	var ok bool
	if f.Proto = text("proto"); f.Proto != "tcp" && f.Proto != "udp" {
		return nil, badProto
	}
	if f.HostAddr = text("host_addr"); f.HostAddr == "" {
		f.HostAddr = "0.0.0.0"
	}
	if r.Host, ok = address(f.HostAddr); !ok {
		return nil, badHost
	}
	if f.HostPort, ok = port(args["host_port"]); !ok {
		return nil, badHostPort
	}
	if f.GuestAddr = text("guest_addr"); f.GuestAddr != "" {
		if r.Guest, ok = address(f.GuestAddr); !ok {
			return nil, badGuest
		}
	}
	if f.GuestPort, ok = port(args["guest_port"]); !ok {
		return nil, badGuestPort
	}
	return r, nil
}

func address(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Is4()
}

// port is a number's whole part, if that is a port.
func port(v any) (int, bool) {
	n, _ := v.(float64)
	if n < 1 || n >= 1<<16 {
		return 0, false
	}
	return int(n), true
}

// value reads one JSON value. That an object has a name twice is an error, since readers
// differ on which counts.
func value(d *json.Decoder) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		o := map[string]any{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			key, ok := name.(string)
			if _, twice := o[key]; !ok || twice {
				return nil, notJSON
			}
			if o[key], err = value(d); err != nil {
				return nil, err
			}
		}
		return o, end(d)
	case json.Delim('['):
		var a []any
		for d.More() {
			v, err := value(d)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		return a, end(d)
	}
	return t, nil
}

// end takes the end of an object or array.
func end(d *json.Decoder) error {
	_, err := d.Token()
	return err
}

// Added is the answer to Add.
func Added(id int) []byte {
	return answer(map[string]any{"return": map[string]int{"id": id}})
}

// Removed is the answer to Remove.
func Removed() []byte { return answer(map[string]any{"return": struct{}{}}) }

// Entries is the answer to List.
func Entries(all []Forward) []byte {
	if all == nil {
		all = []Forward{}
	}
	return answer(map[string]any{"entries": all})
}

// Failed is the answer where there is no other.
func Failed(why BadRequest) []byte {
	return answer(map[string]any{"error": map[string]string{"desc": "bad request: " + string(why)}})
}

func answer(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // of such values it makes no errors
	}
	return b
}
