// SPDX-License-Identifier: Apache-2.0

// Command sandbox measures what confinement costs: aldente beside a build of
// itself without (-tags unconfined), in turns, in pairs whose order changes from
// round to round. It prints medians, their ratio, and that of the processor time
// for the same work, and fails if confined throughput is less than 0.97 of the
// other.
//
//	make bench-sandbox
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"aldente/bench/bed"
	"aldente/test/netlab"
)

// enough is the ratio of medians below which the sandbox has a cost.
const enough = 0.97

func main() { os.Exit(netlab.Main(netlab.WithCubic(run))) }

func run() int {
	rounds := flag.Int("rounds", 61, "pairs of measurements of each row")
	span := flag.Duration("span", 250*time.Millisecond, "length of one measurement")
	only := flag.String("only", "", "measure only rows that match this regular expression")
	flag.Parse()
	match := regexp.MustCompile(*only)
	b := bed.New("bench/sandbox")
	defer b.Close()
	ok := false
	if err := bed.Try(func() { ok = bench(b, match, *rounds, *span) }); err != nil {
		fmt.Fprintln(os.Stderr, "bench/sandbox:", err)
		return 1
	}
	if !ok {
		return 1
	}
	return 0
}

// sides are what is compared.
var sides = [2]struct{ name, tag string }{{"confined", "none"}, {"unconfined", "unconfined"}}

// bench measures all rows and reports whether the bulk ones are good enough.
func bench(b *bed.Bed, only *regexp.Regexp, rounds int, span time.Duration) bool {
	lab := netlab.New(b, netlab.Options{})
	var guests [2]*netlab.Guest
	for i, s := range sides {
		dir := build(b, s.tag)
		guests[i] = lab.GuestWith(netlab.GuestSpec{Binary: filepath.Join(dir, "pasta"), Args: []string{"--config-net"},
			Timeout: time.Hour})
	}
	fmt.Printf("%-22s %10s %10s %6s  %-20s %s\n", "", sides[0].name, sides[1].name, "ratio", "of pairs, quartiles", "processor time")
	ok := true
	for _, r := range rows {
		if !only.MatchString(r.name) {
			continue
		}
		var got, cost [2][]float64
		var ratios []float64
		for round := range rounds {
			for turn := range sides {
				i := (turn + round) % 2
				before, start := cpu(guests[i]), time.Now()
				got[i] = append(got[i], r.measure(guests[i].NS, lab.Remote, span))
				work := got[i][round] * time.Since(start).Seconds()
				cost[i] = append(cost[i], (cpu(guests[i])-before).Seconds()/work)
			}
			ratios = append(ratios, got[0][round]/got[1][round])
		}
		ratio := quantile(got[0], 0.5) / quantile(got[1], 0.5)
		fmt.Printf("%-22s %10.1f %10.1f %6.3f  %.3f %.3f %.3f    %.3f\n", r.name, quantile(got[0], 0.5), quantile(got[1], 0.5), ratio,
			quantile(ratios, 0.25), quantile(ratios, 0.5), quantile(ratios, 0.75), quantile(cost[0], 0.5)/quantile(cost[1], 0.5))
		if r.bulk && max(ratio, quantile(ratios, 0.5)) < enough {
			ok = false
		}
	}
	return ok
}

// cpu is the time that a guest's broker, agent and worker have used.
func cpu(g *netlab.Guest) (sum time.Duration) {
	for _, p := range g.Processes() {
		sum += netlab.CPU(p)
	}
	return sum
}

// build makes the programs with a build tag, where any user may execute them.
func build(b *bed.Bed, tag string) string {
	dir := filepath.Join(netlab.Stage(), tag)
	for program, pkg := range map[string]string{"aldente": "aldente/broker", "aldente-worker": "aldente/worker", "aldente-names": "aldente/names"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", tag, "-o", filepath.Join(dir, program), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	if err := os.Symlink("aldente", filepath.Join(dir, "pasta")); err != nil {
		b.Fatalf("%v", err)
	}
	return dir
}

// quantile returns the value below which a part q of the measurements lies.
func quantile(v []float64, q float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[int(q*float64(len(s)-1)+0.5)]
}
