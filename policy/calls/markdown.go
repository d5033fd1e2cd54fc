// SPDX-License-Identifier: Apache-2.0

package calls

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Table returns the list as a Markdown table, one row for each call and reason,
// without the rules that it shares with others. An argument without a name is
// an error: what a table says has to be understood.
func (l *List) Table(without ...List) (string, error) {
	type row struct{ call, why, user string }
	var order []row
	limits := map[row][]string{}
	for i := range l.Rules {
		r := &l.Rules[i]
		if sharedWith(r, without) {
			continue
		}
		limit, err := r.limit()
		if err != nil {
			return "", fmt.Errorf("%s: %s: %w", l.Name, r.Call, err)
		}
		if limit == "" {
			limit = "any arguments"
		}
		k := row{r.Call, r.Why, r.User}
		if limits[k] == nil {
			order = append(order, k)
		}
		if !slices.Contains(limits[k], limit) {
			limits[k] = append(limits[k], limit)
		}
	}
	slices.SortStableFunc(order, func(a, b row) int { return strings.Compare(a.call, b.call) })
	var b strings.Builder
	b.WriteString("| Call | Only with | For | By |\n|---|---|---|---|\n")
	for _, k := range order {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.call, strings.Join(limits[k], "; "), k.why, k.user)
	}
	return b.String(), nil
}

// Describe names a rule: its call, and which arguments it permits.
func Describe(r *Rule) string {
	limit, err := r.limit()
	switch {
	case err != nil:
		limit = err.Error()
	case limit == "":
		limit = "any arguments"
	}
	return r.Call + ": " + limit
}

func sharedWith(r *Rule, lists []List) bool {
	for i := range lists {
		for j := range lists[i].Rules {
			if o := &lists[i].Rules[j]; o.Call == r.Call && slices.Equal(o.Args, r.Args) {
				return true
			}
		}
	}
	return false
}

// limit says in words which arguments the rule permits.
func (r *Rule) limit() (string, error) {
	var parts []string
	if r.Arch != "" {
		parts = append(parts, r.Arch)
	}
	for _, a := range r.Args {
		arg, ok := r.argument(a.Index)
		if !ok {
			return "", fmt.Errorf("argument %d has no name", a.Index)
		}
		text, err := arg.describe(a)
		if err != nil {
			return "", err
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " "), nil
}

// describe says what a condition permits.
func (arg *argument) describe(a Arg) (string, error) {
	if !arg.flags {
		name, ok := arg.values[a.Value]
		switch {
		case a.Mask != ^uint64(0):
			return "", fmt.Errorf("a mask on %s", arg.name)
		case ok:
			return name, nil
		case arg.values == nil || a.Value == 0:
			return fmt.Sprintf("%s %d", arg.name, a.Value), nil
		}
		return "", fmt.Errorf("value %#x of %s has no name", a.Value, arg.name)
	}
	must, err := arg.bits(a.Value)
	if err != nil {
		return "", err
	}
	may, err := arg.bits(^a.Mask)
	if err != nil {
		return "", err
	}
	switch {
	case may == "":
		return must, nil
	case must == "":
		return "no " + arg.name + " but " + may, nil
	}
	return must + " (" + may + ")", nil
}

// bits names the bits of a set.
func (arg *argument) bits(v uint64) (string, error) {
	var names []string
	if v&0xff == uint64(unix.SIGCHLD) && arg.values[unix.CLONE_VM] != "" {
		names, v = append(names, "SIGCHLD"), v&^0xff
	}
	if name, ok := arg.values[v]; ok && v != 0 {
		return strings.Join(append(names, name), " + "), nil
	}
	for v != 0 {
		bit := uint64(1) << bits.TrailingZeros64(v)
		name, ok := arg.values[bit]
		if !ok {
			return "", fmt.Errorf("bit %#x of %s has no name", bit, arg.name)
		}
		names, v = append(names, name), v&^bit
	}
	return strings.Join(names, " + "), nil
}

// Tables returns the tables of docs/security-calls.md by the names of their markers.
func Tables() (map[string]string, error) {
	start, worker, agent, broker, remover, reader := WorkerStart(), Worker(), Agent(), Broker(), Remover(), Reader()
	vhost, brokerVhost, asking, askingStart := WorkerVhost(), BrokerVhost(), Names(), NamesStart()
	all := map[string]string{}
	for name, t := range map[string]struct {
		list    List
		without []List
	}{
		"worker":       {worker, nil},
		"worker-start": {start, []List{worker}},
		"worker-vhost": {vhost, []List{worker}},
		"names":        {asking, nil},
		"names-start":  {askingStart, []List{asking}},
		"broker-vhost": {brokerVhost, []List{broker, WorkerVhostStart()}},
		"agent":        {agent, nil},
		"broker":       {broker, []List{start}},
		"remover":      {remover, nil},
		"reader":       {reader, nil},
	} {
		text, err := t.list.Table(t.without...)
		if err != nil {
			return nil, err
		}
		all[name] = text
	}
	return all, nil
}

// Markers of a generated table, HTML comments.
const (
	markBegin = "<!-- calls: %s (made by `make generate`) -->\n"
	markEnd   = "<!-- end of calls -->\n"
)

// Fill returns a document with what is between the markers made anew. A marker
// that is missing is an error.
func Fill(doc string) (string, error) {
	tables, err := Tables()
	if err != nil {
		return "", err
	}
	for name, table := range tables {
		begin := fmt.Sprintf(markBegin, name)
		head, rest, ok := strings.Cut(doc, begin)
		_, tail, ended := strings.Cut(rest, markEnd)
		if !ok || !ended {
			return "", fmt.Errorf("no place for the table %q", name)
		}
		doc = head + begin + table + markEnd + tail
	}
	return doc, nil
}
