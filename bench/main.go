// SPDX-License-Identifier: Apache-2.0

// Command bench measures the kernel's own veth, passt's pasta, slirp4netns and
// aldente side by side, each row for all of them in turn, round after round,
// and prints medians and ratios. It makes its own namespaces, fetches the
// peers from Debian's newest suite into build/, and installs nothing but
// patchelf.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aldente/bench/report"
	"aldente/test/netlab"
)

type options struct {
	short  bool
	rounds int
	repeat int
	span   time.Duration
	calls  bool
	mode   bool // as slirp4netns
	who    *regexp.Regexp
	only   *regexp.Regexp
	pasta  string
	slirp  string
	cache  string
	csv    string
	svg    string
	saved  string
}

func main() {
	if len(os.Args) == 6 && os.Args[1] == clientArg {
		if err := client(os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 6 && os.Args[1] == namesArg {
		if err := namesClient(os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(netlab.Main(netlab.WithCubic(run)))
}

func run() int {
	var o options
	only := flag.String("only", "", "measure only rows that match this regular expression")
	who := flag.String("who", "", "measure only contestants whose names match this regular expression")
	flag.BoolVar(&o.calls, "calls", false, "count the system calls of requests too, which slows them down")
	flag.BoolVar(&o.mode, "as-slirp4netns", false, "measure slirp4netns, and aldente by that name, each with a tap of its network and ports by the API")
	flag.IntVar(&o.repeat, "repeat", 0, "how often in a row each row is measured in a round, for all contestants in turn (default 1, short: 3)")
	flag.BoolVar(&o.short, "short", false, "the rows that matter most, in short spans: under three minutes")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds (default 6, short: 2)")
	flag.DurationVar(&o.span, "span", 0, "length of one measurement (default 2.5s, short: 120ms)")
	flag.StringVar(&o.pasta, "pasta", "", "use this pasta as peer (default: fetch Debian's newest)")
	flag.StringVar(&o.slirp, "slirp4netns", "", "use this slirp4netns as peer (default: fetch Debian's newest)")
	flag.StringVar(&o.cache, "cache", "build/peers", "folder for what is fetched")
	flag.StringVar(&o.csv, "csv", "", "also write every single measurement to this file")
	flag.StringVar(&o.saved, "compare", "", "measure nothing: compare the run of -csv with the one in this file")
	flag.StringVar(&o.svg, "svg", "", "also draw throughput into this folder")
	flag.Parse()
	if o.saved != "" {
		return compare(o)
	}
	// Six pairs of each row are the fewest of which an interval is known.
	rounds, repeat, span := 6, 1, 2500*time.Millisecond
	if o.short {
		rounds, repeat, span = 2, 3, 120*time.Millisecond
	}
	o.rounds, o.repeat, o.span = cmp.Or(o.rounds, rounds), cmp.Or(o.repeat, repeat), cmp.Or(o.span, span)
	o.only, o.who = regexp.MustCompile(*only), regexp.MustCompile(*who)
	countsCalls = o.calls
	// Both ends of 50,000 connections, and as many sockets of a translator.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		fmt.Fprintln(os.Stderr, "bench: the limit of open files stays, fewer than 50,000 idle flows are measured:", err)
	}
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func bench(o options) error {
	if o.pasta == "" || o.slirp == "" {
		if err := fetchPeers(&o); err != nil {
			fmt.Fprintln(os.Stderr, "bench: no peers, measuring without them:", err)
		}
	}
	t := report.New()
	start := time.Now()
	for round := range o.rounds {
		for _, group := range groups(o.short) {
			if err := group.measure(o, t, round); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d done after %v\n", round+1, o.rounds, time.Since(start).Round(time.Second))
	}
	t.Notes = notes(o)
	fmt.Print("\n", t.Markdown(nil))
	return errors.Join(t.WriteFile(o.csv), t.Draw(o.svg, report.TapPlots()))
}

// compare prints how a run differs from one that was saved.
func compare(o options) int {
	saved, err := report.ReadFile(o.saved)
	now, nowErr := report.ReadFile(o.csv)
	if err := errors.Join(err, nowErr); err != nil {
		fmt.Fprintln(os.Stderr, "bench: there have to be two runs to compare, the new one by make bench:", err)
		return 1
	}
	fmt.Print(report.Compare(saved, now))
	return 0
}

// notes say what the figures were measured on and with.
func notes(o options) []string {
	cpu := "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(b); m != nil {
			cpu = string(m[1])
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	all := []string{fmt.Sprintf("%s, %d cores, Linux %s; congestion control cubic everywhere; %d rounds of %d × %v, medians",
		cpu, cores(), strings.TrimSpace(string(kernel)), o.rounds, o.repeat, o.span)}
	for _, c := range contestants(o) {
		all = append(all, c.name+": "+c.version)
	}
	return append(all, fmt.Sprintf("default: tcp_wmem %s, tcp_rmem %s; tuned: tcp_wmem %s, tcp_rmem %s, on host and remote",
		sysctls[0].wmem, sysctls[0].rmem, sysctls[1].wmem, sysctls[1].rmem))
}
