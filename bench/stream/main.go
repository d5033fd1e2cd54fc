// SPDX-License-Identifier: Apache-2.0

// Command stream measures translators behind QEMU's stream socket side by
// side: passt, gvproxy and aldente, with the kernel's own tcp_wmem and with
// one that starts at 4 MiB, each row for all of them in turn, round after
// round. A stand-in takes QEMU's place, since an emulated guest would be
// slower than any of them. It prints medians, and the ratio of aldente to the
// best of the others. With -vhost-user it does so for that link.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"aldente/bench/bed"
	"aldente/bench/peers"
	"aldente/bench/report"
	"aldente/test/netlab"
	"aldente/test/stream/standin"
	"aldente/test/vhost/frontend"
)

type options struct {
	rounds  int
	span    time.Duration
	passt   string
	gvproxy string
	ours    string
	cache   string
	with    variants
	only    *regexp.Regexp
	rows    *regexp.Regexp
	csv     string

	plain       bool
	vhostUser   bool
	ring, piece int
}

// variants are further passts to measure: builds of ours with one thing
// changed, beside the one that is to be judged.
type variants []struct{ name, path string }

func (v *variants) String() string { return "" }

func (v *variants) Set(s string) error {
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("NAME=PATH is expected")
	}
	*v = append(*v, struct{ name, path string }{name, path})
	return nil
}

func main() {
	standin.Main()
	frontend.Main()
	os.Exit(netlab.Main(netlab.WithCubic(run)))
}

func run() int {
	var o options
	only := flag.String("only", "", "measure only contestants that match this regular expression")
	rows := flag.String("rows", "", "measure only rows that match this regular expression")
	short := flag.Bool("short", false, "one short round: under a minute")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds (default 5, short: 1)")
	flag.DurationVar(&o.span, "span", 0, "length of one measurement (default 2s, short: 800ms)")
	flag.StringVar(&o.passt, "passt", "", "the original passt (default: fetch Debian's newest)")
	flag.StringVar(&o.gvproxy, "gvproxy", "", "gvproxy (default: build the latest)")
	flag.StringVar(&o.ours, "ours", "", "the passt under test (default: the repository's)")
	flag.StringVar(&o.cache, "cache", "build/peers", "folder for what is built")
	flag.StringVar(&o.csv, "csv", "", "also write every single measurement to this file")
	flag.BoolVar(&o.plain, "plain", false, "leave to the guest's kernel what the link cannot do: cutting, checksums, putting segments together")
	flag.BoolVar(&o.vhostUser, "vhost-user", false, "measure vhost-user instead, and our stream beside it")
	flag.IntVar(&o.ring, "ring", 256, "entries of a ring of vhost-user")
	flag.IntVar(&o.piece, "piece", 0, "most bytes of a descriptor of a sent frame, vhost-user; 0: any number")
	flag.Var(&o.with, "with", "NAME=PATH of a further passt, again for more")
	flag.Parse()
	if o.rounds == 0 {
		o.rounds = map[bool]int{false: 5, true: 1}[*short]
	}
	if o.span == 0 {
		o.span = map[bool]time.Duration{false: 2 * time.Second, true: 800 * time.Millisecond}[*short]
	}
	o.only, o.rows = regexp.MustCompile(*only), regexp.MustCompile(*rows)
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/stream:", err)
		return 1
	}
	return 0
}

// prepare finds all contestants' programs; a missing one is left out.
func (o *options) prepare() (err error) {
	if o.ours == "" {
		o.ours = filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
	}
	if o.gvproxy == "" && !o.vhostUser {
		if o.gvproxy, err = buildGvproxy(o.cache); err != nil {
			fmt.Fprintln(os.Stderr, "measuring without gvproxy:", err)
		}
	}
	if o.gvproxy, err = stageCopy(o.gvproxy); err != nil {
		return err
	}
	if o.passt == "" {
		dir, err := peers.Fetch(o.cache)
		if err != nil {
			fmt.Fprintln(os.Stderr, "measuring without passt:", err)
			return nil
		}
		o.passt = filepath.Join(dir, "passt")
	}
	return nil
}

func bench(o options) error {
	if err := o.prepare(); err != nil {
		return err
	}
	t, all := report.New(), contestants(o)
	start := time.Now()
	for round := range o.rounds {
		for _, w := range wmems {
			for _, mtu := range mtus {
				for _, c := range all {
					if err := measure(o, t, c, w, mtu); err != nil {
						fmt.Fprintf(os.Stderr, "%s, MTU %d: %v\n", c.name, mtu, err)
					}
				}
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d done after %v\n", round+1, o.rounds, time.Since(start).Round(time.Second))
	}
	t.Notes = []string{fmt.Sprintf("medians of %d rounds of %v", o.rounds, o.span)}
	fmt.Print("\n", t.Markdown(nil))
	return t.WriteFile(o.csv)
}

// measure adds to the table what one set-up is good for: both directions.
func measure(o options, t *report.Table, c contestant, w wmem, mtu int) error {
	var rows []row
	kinds := []kind{up, down}
	if o.vhostUser {
		kinds = append(kinds, roundTripsTCP, roundTripsUDP)
	}
	for _, k := range kinds {
		if r := (row{w, mtu, k}); o.rows.MatchString(r.String()) {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	b := bed.New("bench/stream")
	defer b.Close()
	return bed.Try(func() {
		s := setUp(o, netlab.New(b, netlab.Options{}), c, w, mtu)
		for _, r := range rows {
			if network := r.kind.network(); network != "" {
				v, err := s.roundTrips(network, o.span)
				if err != nil {
					fmt.Fprintf(os.Stderr, "%s, %s: %v\n%s\n", c.name, r, err, strings.TrimSpace(s.proc.Output()))
				}
				t.Add(r.String(), "1/s", c.name, v)
				continue
			}
			res, err := s.bulk(r.kind == down, o.span)
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s, %s: %v\n%s\n", c.name, r, err, strings.TrimSpace(s.proc.Output()))
			}
			add(t, r, c, res)
		}
	})
}

// add adds one measurement to the table, each of its values under its unit.
func add(t *report.Table, r row, c contestant, res result) {
	for _, v := range []struct {
		unit  string
		value float64
	}{
		{report.Throughput, res.gbit},
		{"CPU s/GiB of the translator", res.cpu},
		{"CPU s/GiB of all processes on the way", res.all},
		{"segments sent twice", float64(res.again)},
	} {
		t.Add(r.String(), v.unit, c.name, v.value)
	}
}
