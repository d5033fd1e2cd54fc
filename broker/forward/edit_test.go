// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/plan"
	"aldente/ipc"
)

// options are the rules in force, as options.
func options(f *Forwarder) string {
	var all []string
	for _, s := range f.States() {
		all = append(all, s.Option(s.Outbound))
	}
	return strings.Join(all, " ")
}

// TestEdit: rules are added and deleted one by one, all that is asked for or nothing;
// an error says which rule it was, and leaves all as it was.
func TestEdit(t *testing.T) {
	for _, tt := range []struct {
		name, command string
		add, del      []string
		rules, told   string
		err           string
	}{
		{name: "add", command: "pasta -t 80 -u none -T none -U none", add: []string{"-t 81", "-u 53", "-T 90", "-U 91:92"},
			rules: "-t 80:80 -t 81:81 -u 53:53 -T 90:90 -U 91:92", told: "+81 +53 +90 +91"},
		{name: "add what exists", command: "passt -t 80 -u 53", add: []string{"-u 53", "-t 80"}, rules: "-t 80:80 -u 53:53"},
		{name: "add some that exist", command: "passt -t 80", add: []string{"-t 80,81"}, rules: "-t 80:80 -t 81:81", told: "+81"},
		{name: "an address", command: "passt -t 80", add: []string{"-t 127.0.0.1/81:8080"}, rules: "-t 80:80 -t 127.0.0.1/81:8080", told: "+81"},
		{name: "delete", command: "pasta -t 80 -t 81 -u none -T 90 -U none", del: []string{"-t 80", "-T 90"}, rules: "-t 81:81", told: "-80 -90"},
		{name: "spaces", command: "passt -t 80", add: []string{"  -t   81 "}, rules: "-t 80:80 -t 81:81", told: "+81"},

		{name: "delete what is not there", command: "passt -t 80", del: []string{"-t 80", "-t 81"}, err: "there is no rule -t 81:81"},
		{name: "delete a part", command: "passt -t 80-90", del: []string{"-t 85"}, err: "there is no rule -t 85:85; there is -t 80-90:80-90"},
		{name: "delete another target", command: "pasta -t none -u none -T 80:81 -U none", del: []string{"-T 80"}, err: "there is no rule -T 80:80; there is -T 80:81"},
		{name: "conflict", command: "passt -t 80-90", add: []string{"-t 91", "-t 85"}, err: "conflict: TCP [*]:85"},
		{name: "taken", command: "passt -t 80", add: []string{"-t 81", "-t 99", "-t 82"}, err: "for rule TCP [*]:99"},
		{name: "no option", command: "passt -t 80", add: []string{"81"}, err: "'81' is no port rule"},
		{name: "another option", command: "passt -t 80", add: []string{"-x 81"}, err: "'-x 81' is no port rule"},
		{name: "no ports", command: "passt -t 80", add: []string{"-t"}, err: "no port given"},
		{name: "none", command: "passt -t 80", add: []string{"-t none"}, err: "'-t none' names no port"},
		{name: "nonsense", command: "passt -t 80", add: []string{"-t 81", "-t x"}, err: "Invalid port specifier 'x'"},
		{name: "outbound for machines", command: "passt -t 80", add: []string{"-T 81"}, err: "no namespace"},
		{name: "auto for machines", command: "passt -t 80", add: []string{"-t auto"}, err: "'auto' port forwarding"},
		{name: "no UDP", command: "passt --no-udp -t 80", add: []string{"-u 81"}, err: "protocol disabled"},
	} {
		h := &host{busy: map[uint16]error{}}
		f := live(t, h, tt.command+" -4 -c x")
		h.busy[99] = unix.EACCES
		before, open := options(f), h.open()
		h.told = nil
		err := f.Add(tt.add)
		if tt.del != nil {
			err = f.Delete(tt.del)
		}
		got := strings.NewReplacer("0.0.0.0/", "").Replace(options(f))
		if tt.err != "" {
			if err == nil || !strings.Contains(strings.ReplaceAll(strings.ReplaceAll(err.Error(), "0.0.0.0/", ""), "[0.0.0.0]", "[*]"), tt.err) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
			}
			if options(f) != before || h.open() != open || len(h.told) > 0 {
				t.Errorf("%s: rules are %s, open is %q, the worker has heard %q; was %s, %q", tt.name, options(f), h.open(), h.told, before, open)
			}
			continue
		}
		if err != nil || got != tt.rules || strings.Join(h.told, " ") != tt.told {
			t.Errorf("%s: %v; rules are %q, the worker hears %q; want %q, %q", tt.name, err, got, h.told, tt.rules, tt.told)
		}
	}
}

// TestEditMany: more rules than pesto's protocol can say.
func TestEditMany(t *testing.T) {
	h := &host{}
	f := live(t, h, "passt -c x")
	var specs []string
	for i := range 1000 {
		specs = append(specs, fmt.Sprintf("-t 127.0.0.1/%d", 2000+2*i))
	}
	if err := f.Add(specs); err != nil || len(h.listeners) != 1000 {
		t.Fatalf("%v, %d listeners", err, len(h.listeners))
	}
	if err := f.Delete(specs[1:]); err != nil || len(h.listeners) != 1 || len(f.States()) != 1 {
		t.Errorf("%v, %d listeners, %d rules", err, len(h.listeners), len(f.States()))
	}
}

// TestUpdate: whoever makes rules of rules sees those in force, and an error changes
// nothing.
func TestUpdate(t *testing.T) {
	h := &host{}
	f := live(t, h, "passt -t 80 -c x")
	no := errors.New("no")
	err := f.Update(func(now plan.Rules) (plan.Rules, error) {
		if len(now.Inbound) != 1 || now.Inbound[0].First != 80 {
			t.Errorf("in force: %+v", now)
		}
		now.Inbound = nil
		return now, no
	})
	if !errors.Is(err, no) || options(f) != "-t 80:80" {
		t.Errorf("%v: %s", err, options(f))
	}
}

// TestStates: on how many of its ports a rule listens.
func TestStates(t *testing.T) {
	h := &host{bound: map[uint8][]uint16{ipc.ProtoTCP: {8080, 8081, 9}}}
	f := live(t, h, "pasta -t 80-82 -t 8000-9000,auto -u none -T 90 -U none -c x")
	var got []int
	for _, s := range f.States() {
		got = append(got, s.Listens)
	}
	if want := []int{3, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	f.lost[h.listeners[0].ID] = true
	if got := f.States()[0].Listens; got != 2 {
		t.Errorf("with one lost: %d", got)
	}
}
