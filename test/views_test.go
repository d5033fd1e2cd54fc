// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"aldente/test/netlab"
)

// view runs aldentectl on the host, as root.
func view(lab *netlab.Lab, args ...string) (status int, out string) {
	p := lab.Host.Start(netlab.Spec{Args: append([]string{filepath.Join(netlab.Stage(), "aldentectl")}, args...)})
	st := p.Wait()
	return st, p.Output()
}

// scrapeHost asks an exporter on the host for its metrics.
func scrapeHost(t *testing.T, lab *netlab.Lab, addr string) (names map[string]bool, text string) {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			return lab.Host.DialError(network, addr, 5*time.Second)
		}}}
	r, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(string(b)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	names = map[string]bool{}
	for name, f := range families {
		names[name] = true
		if f.GetType().String() == "HISTOGRAM" {
			names[name+"_bucket"], names[name+"_sum"], names[name+"_count"] = true, true, true
		}
	}
	return names, string(b)
}

// ourMetric finds names of metrics in expressions.
var ourMetric = regexp.MustCompile(`\baldente_[a-z_]+`)

// TestMonitoring: the exporter serves what all instances count, one that is stopped
// does not keep it, and the dashboard and the alerts ask for nothing that is not there.
func TestMonitoring(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	busyGuest(t, lab)
	other := lab.Guest()
	const at = "127.0.0.1:9741"
	e := lab.Host.Start(netlab.Spec{Args: []string{filepath.Join(netlab.Stage(), "aldentectl"), "exporter"}})
	if !eventually(20*time.Second, func() bool { return strings.Contains(e.Output(), at) }) {
		t.Fatal(e.Output())
	}
	names, text := scrapeHost(t, lab, at)
	if n := strings.Count(text, "\naldente_up{"); n != 2 || strings.Contains(text, "\naldente_up{pid=\"0") {
		t.Errorf("%d instances in\n%s", n, text)
	}
	st, one := view(lab, "metrics", "--pid", fmt.Sprint(other.Proc.PID))
	if st != 0 || !strings.HasSuffix(one, "\n# EOF\n") || !strings.Contains(one, fmt.Sprintf(`pid="%d"`, other.Proc.PID)) {
		t.Errorf("metrics: status %d\n%s", st, one)
	}
	for file, used := range map[string][]string{"grafana/aldente.json": dashboardMetrics(t), "prometheus/aldente.rules.yml": alertMetrics(t)} {
		if len(used) < 5 {
			t.Errorf("%s asks for %v only", file, used)
		}
		for _, n := range used {
			if !names[n] {
				t.Errorf("%s asks for %s, which is not there", file, n)
			}
		}
	}
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (aldente_\w+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(doc), "`"+m[1]+"`") {
			t.Errorf("docs/operations.md does not name %s", m[1])
		}
	}
	_ = other.Proc.Signal(syscall.SIGSTOP)
	// The signal has its time, too.
	left := regexp.MustCompile(`aldente_exporter_skipped_instances_total\{reason="timeout"\} [1-9]`)
	skipped := eventually(time.Minute, func() bool {
		_, text = scrapeHost(t, lab, at)
		return left.MatchString(text) && strings.Count(text, "\naldente_instance_info{") == 1
	})
	_ = other.Proc.Signal(syscall.SIGCONT)
	if !skipped {
		t.Errorf("one is stopped:\n%s", text)
	}
	other.Close()
	if !eventually(20*time.Second, func() bool { _, text = scrapeHost(t, lab, at); return strings.Count(text, "\naldente_up{") == 1 }) {
		t.Errorf("one has ended:\n%s", text)
	}
	_ = e.Signal(syscall.SIGTERM)
	if st := e.Wait(); st != 0 {
		t.Errorf("exporter: status %d\n%s", st, e.Output())
	}
	p := lab.Host.Start(netlab.Spec{Args: []string{filepath.Join(netlab.Stage(), "aldentectl"), "exporter", "--listen", ":9741"}})
	if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), "0.0.0.0:9741") {
		t.Errorf("all addresses, without a word: status %d\n%s", st, p.Output())
	}
}

// dashboardMetrics are the metrics that the dashboard's panels and variables name.
func dashboardMetrics(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../packaging/grafana/aldente.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title  string
		Panels []struct {
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil || d.Title == "" || len(d.Panels) < 8 {
		t.Fatal(d, err)
	}
	for _, p := range d.Panels {
		if p.Type != "row" && len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v", p)
		}
	}
	names := ourMetric.FindAllString(string(b), -1)
	slices.Sort(names)
	return slices.Compact(names)
}

// alertMetrics are the metrics that the alerts name.
func alertMetrics(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../packaging/prometheus/aldente.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(b, &d); err != nil || len(d.Groups) == 0 {
		t.Fatal(d, err)
	}
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range d.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Expr == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || !strings.Contains(string(doc), "`"+r.Alert+"`") {
				t.Errorf("alert %+v: something is missing, or docs/operations.md does not name it", r)
			}
			names = append(names, ourMetric.FindAllString(r.Expr, -1)...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TestPromtool has Prometheus's own tool look at the alerts (Debian: prometheus).
func TestPromtool(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("needs promtool")
	}
	if out, err := exec.Command("promtool", "check", "rules", "../packaging/prometheus/aldente.rules.yml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDocumentedLines: the lines of the log that docs/operations.md names are written
// somewhere.
func TestDocumentedLines(t *testing.T) {
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (error|warning) \\|").FindAllStringSubmatch(string(doc), -1)
	if len(lines) < 5 {
		t.Fatalf("only %d lines are named", len(lines))
	}
	var source strings.Builder
	err = filepath.WalkDir("../broker", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		source.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		call := map[string]string{"error": "Error", "warning": "Warn"}[l[2]] + `("` + l[1]
		if !strings.Contains(source.String(), call) {
			t.Errorf("nothing says %q as %s", l[1], l[2])
		}
	}
}
