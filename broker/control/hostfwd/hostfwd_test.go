// SPDX-License-Identifier: Apache-2.0

package hostfwd

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"aldente/fuzz"
)

// requests are those of the recorded conversation.
func requests(tb testing.TB) (all []string) {
	b, err := os.ReadFile("testdata/answers.txt")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if r, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "> "); ok {
			all = append(all, r)
		}
	}
	if len(all) < 40 {
		tb.Fatalf("only %d requests", len(all))
	}
	return all
}

// TestPieces: a request is the same however it comes, and is answered as soon as it is
// complete. One that breaks off is an error once the client says no more.
func TestPieces(t *testing.T) {
	for _, text := range requests(t) {
		whole, err := Parse([]byte(text), true)
		for n := range len(text) {
			r, e := Parse([]byte(text[:n]), false)
			if errors.Is(e, ErrMore) {
				continue
			}
			// Decided before its end: what is behind does not count.
			if e != err || e == nil && *r != *whole {
				t.Errorf("%q of %q: %+v, %v, whole: %+v, %v", text[:n], text, r, e, whole, err)
			}
			break
		}
	}
	for _, text := range []string{"", " ", "{", `{"execute": "list_host`, `{"execute"`, `{"execute": "list_hostfwd", "x": [1, `} {
		if _, err := Parse([]byte(text), false); !errors.Is(err, ErrMore) {
			t.Errorf("%q: %v before its end", text, err)
		}
		if _, err := Parse([]byte(text), true); err != notJSON {
			t.Errorf("%q: %v at its end", text, err)
		}
	}
}

// TestLength: 4095 bytes are read, and no more.
func TestLength(t *testing.T) {
	text := []byte(`{"execute": "list_hostfwd"}` + strings.Repeat(" ", MaxRequest))
	if r, err := Parse(text[:MaxRequest-1], false); err != nil || r.Command != List {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := Parse(text[:MaxRequest], false); err != TooLarge {
		t.Error(err)
	}
	for _, c := range []string{"[", `{"a":`} {
		if _, err := Parse([]byte(strings.Repeat(c, MaxRequest/len(c)-1)), true); err != notJSON {
			t.Error(err)
		}
	}
}

// FuzzHostfwd: whatever a client sends is a request that makes sense, an error with
// words of ours, or not complete; and what is behind a request changes nothing.
func FuzzHostfwd(f *testing.F) {
	for _, r := range requests(f) {
		fuzz.Add(f, []byte(r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b, true)
		if _, e := Parse(b, false); !errors.Is(e, ErrMore) && e != err {
			t.Fatalf("%v while it goes on, %v at its end", e, err)
		}
		bad := BadRequest("")
		switch {
		case errors.As(err, &bad):
			if answer := Failed(bad); !json.Valid(answer) || !bytes.HasPrefix(answer, []byte(`{"error":{"desc":"bad request: `)) {
				t.Errorf("%s", answer)
			}
			return
		case err != nil:
			t.Fatal(err)
		}
		w := &r.Forward
		switch r.Command {
		case Add:
			if w.Proto != "tcp" && w.Proto != "udp" || !r.Host.Is4() || r.Host.String() != w.HostAddr || w.GuestAddr != "" && r.Guest.String() != w.GuestAddr ||
				w.HostPort < 1 || w.HostPort > 65535 || w.GuestPort < 1 || w.GuestPort > 65535 {
				t.Errorf("%+v", r)
			}
		case Remove:
			if r.ID < 1 {
				t.Errorf("%+v", r)
			}
		}
		if len(b)+1 < MaxRequest {
			if again, err := Parse(append(bytes.Clone(b), '}'), true); err != nil || *again != *r {
				t.Errorf("%+v, with more behind it %+v, %v", r, again, err)
			}
		}
	})
}
