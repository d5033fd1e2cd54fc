// SPDX-License-Identifier: Apache-2.0

package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floors are the storeys of the house, from the ground: a package imports
// only from below its own.
var floors = [][]string{
	{"aldente/ipc/domain", "aldente/ipc/sock"}, // names, and what rules say of them; calls of sockets
	{"aldente/worker/packet", "aldente/ipc", "aldente/policy"},
	{"aldente/worker/vhost"},                        // rings
	{"aldente/worker/vhostuser"},                    // who says where they are
	{"aldente/worker/store", "aldente/worker/flow"}, // what the translators share; no protocol
	{"aldente/worker/datagram"},                     // what the translators of datagrams share
	{"aldente/worker/kernel", "aldente/worker/link", "aldente/worker/arp", "aldente/worker/ndp", "aldente/worker/igmp", "aldente/worker/dhcp", "aldente/worker/dhcpv6"},
	{"aldente/worker/tcp", "aldente/worker/udp", "aldente/worker/icmp", "aldente/worker/bypass"},
	{"aldente/worker/lane"},
	{"aldente/worker"},

	{"aldente/names/frame", "aldente/names/kernel"}, // messages in a stream; system calls
	{"aldente/names/hello", "aldente/names/proxy"},  // which server a client means; what a proxy is told
	{"aldente/names/dns", "aldente/names/stage"},    // questions and answers; flows that are looked at
	{"aldente/names/loop"},
	{"aldente/names"},
}

// brokerFloors are those of the broker. What a floor holds does not import each
// other. The plan stands high, since it says in their own terms what the others are
// told, and enters none of them: TestPlanOnlyDecides.
var brokerFloors = [][]string{
	{"limiter", "control/api", "rulesfile", "service", "wait"},
	{"egress", "budget", "flowlog", "foreign", "fork", "inet", "output", "hostnet/netlink", "netns/nofile", "tun"},
	{"ingress"},
	{"cli", "rtnl", "startup", "netns", "guestsock", "logging", "audit", "reader"},
	{"hostnet", "follow", "ports", "control/wire", "control/hostfwd"},
	{"control", "figures"},
	{"sockets", "agent", "supervise", "names"},
	{"plan"},
	{"forward"},
	{""}, // the program: nobody imports it
}

func brokerFloor(pkg string) int {
	name := strings.TrimPrefix(strings.TrimPrefix(pkg, "aldente/broker"), "/")
	return slices.IndexFunc(brokerFloors, func(f []string) bool { return slices.Contains(f, name) })
}

// TestBrokerFloors: imports go down in the broker too.
func TestBrokerFloors(t *testing.T) {
	for pkg, imports := range goList(t, "./broker/...") {
		from := brokerFloor(pkg)
		if from < 0 && !strings.HasSuffix(pkg, "test") {
			t.Errorf("%s is on no floor", pkg)
		}
		for _, imp := range imports {
			if isIn(imp, "aldente/broker") && from >= 0 && brokerFloor(imp) >= from {
				t.Errorf("%s (floor %d) imports %s (floor %d): imports go down only", pkg, from, imp, brokerFloor(imp))
			}
		}
	}
}

// pure are the functions of packages that make system calls which the plan may
// call, since they make none, and its conversions.
var pure = []string{"agent.Copy", "cli.Admit", "cli.PortRange", "hostnet.ScopeOf", "sockets.PortRange"}

// TestPlanOnlyDecides parses broker/plan: it neither imports what enters the kernel
// nor calls a function of our packages that do, and takes their types alone.
func TestPlanOnlyDecides(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "broker", "plan", "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		checkCalls(t, path)
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if imp.Name != nil {
				t.Errorf("%s renames %s", path, imp.Path.Value)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok || x.Obj != nil || !slices.Contains([]string{"agent", "cli", "hostnet", "netns", "ports", "sockets", "supervise"}, x.Name) {
				return true
			}
			if name := x.Name + "." + sel.Sel.Name; !slices.Contains(pure, name) {
				t.Errorf("%s calls %s", path, name)
			}
			return true
		})
	}
}

// socketCalls are the calls that make a socket what it is. Those who have sockets made ask
// broker/inet, which has one recipe for each kind.
var socketCalls = []string{"Socket", "SetsockoptInt", "SetsockoptSockFprog", "BindToDevice", "Bind", "Connect", "Listen"}

// TestSocketRecipes parses the packages that have sockets made.
func TestSocketRecipes(t *testing.T) {
	for _, dir := range []string{"sockets", "agent", "forward", "plan"} {
		files, err := filepath.Glob(filepath.Join("..", "broker", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "unix" || x.Name == "sock" || x.Name == "syscall") && slices.Contains(socketCalls, sel.Sel.Name) {
					t.Errorf("%s calls %s.%s: sockets are made by broker/inet", path, x.Name, sel.Sel.Name)
				}
				return true
			})
		}
	}
}

// TestSocketNumbers: the confined programs make no call of sockets by x/sys or package
// syscall, which make it by socketcall(2) on s390x, nor by package net.
func TestSocketNumbers(t *testing.T) {
	socketcall := regexp.MustCompile(`\b(unix|syscall)\.(Socket(pair)?|Bind(ToDevice)?|Connect|Listen|Accept4?|Getsockname|Getpeername|Shutdown|[GS]etsockopt\w*|(Recv|Send)(msg|from|to)\w*)\(`)
	for pkg, imports := range goList(t, "aldente/...") {
		program, _, _ := strings.Cut(strings.TrimPrefix(pkg, "aldente/"), "/")
		if !slices.Contains([]string{"broker", "worker", "names", "ipc", "policy"}, program) || strings.HasSuffix(pkg, "test") || pkg == "aldente/policy/captive" {
			continue
		}
		if slices.Contains(imports, "net") {
			t.Errorf("%s imports net", pkg)
		}
		files, err := filepath.Glob(filepath.Join("..", strings.TrimPrefix(pkg, "aldente/"), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if call := socketcall.Find(b); call != nil && !strings.HasSuffix(path, "_test.go") {
				t.Errorf("%s: %s…): such calls are in ipc/sock", path, call)
			}
		}
	}
}

// TestNetlinkRoom: broker/rtnl alone has netlink sockets, and knows how messages are
// laid out.
func TestNetlinkRoom(t *testing.T) {
	for pkg, imports := range goList(t, "./broker/...") {
		if pkg == "aldente/broker/rtnl" {
			continue
		}
		if slices.Contains(imports, "aldente/broker/hostnet/netlink") {
			t.Errorf("%s imports netlink sockets", pkg)
		}
		files, err := filepath.Glob(filepath.Join("..", strings.TrimPrefix(pkg, "aldente/"), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, layout := range []string{"unix.SizeofNl", "unix.SizeofRt", "unix.SizeofIf", "unix.NLMSG_ALIGN"} {
				if !strings.HasSuffix(path, "_test.go") && strings.Contains(string(b), layout) {
					t.Errorf("%s knows %s…: that is for broker/rtnl", path, layout)
				}
			}
		}
	}
}

// floorOf returns a package's floor, or -1. All of policy is on the ground;
// what only tests import is on none.
func floorOf(pkg string) int {
	if isIn(pkg, "aldente/policy") {
		return 0
	}
	return slices.IndexFunc(floors, func(f []string) bool { return slices.Contains(f, pkg) })
}

// goList returns, for each package that matches, its imports.
func goList(t *testing.T, pattern string, flags ...string) map[string][]string {
	t.Helper()
	args := slices.Concat([]string{"list"}, flags, []string{"-f", "{{.ImportPath}} {{join .Imports \" \"}}", pattern})
	cmd := exec.Command("go", args...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", pattern, err, errs.String())
	}
	m := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		m[f[0]] = f[1:]
	}
	return m
}

func isIn(pkg, tree string) bool { return pkg == tree || strings.HasPrefix(pkg, tree+"/") }

func TestImportFloors(t *testing.T) {
	for pkg, imports := range goList(t, "./...") {
		for _, imp := range imports {
			if !isIn(imp, "aldente") || isIn(pkg, "aldente/policy") && isIn(imp, "aldente/policy") || strings.HasSuffix(pkg, "test") {
				continue
			}
			for _, one := range []string{"aldente/broker", "aldente/worker", "aldente/names"} {
				for _, other := range []string{"aldente/broker", "aldente/worker", "aldente/names"} {
					if one != other && isIn(pkg, one) && isIn(imp, other) {
						t.Errorf("%s imports %s: the programs never import each other", pkg, imp)
					}
				}
			}
			from, to := floorOf(pkg), floorOf(imp)
			switch {
			case (isIn(pkg, "aldente/worker") || isIn(pkg, "aldente/names")) && from < 0:
				t.Errorf("%s is on no floor", pkg)
			case from >= 0 && to >= from:
				t.Errorf("%s (floor %d) imports %s (floor %d): imports go down only", pkg, from, imp, to)
			case from >= 0 && to < 0:
				t.Errorf("%s imports %s, which is on no floor", pkg, imp)
			}
		}
	}
}

// TestWorkerDependencies looks at all that is linked into worker and names.
func TestWorkerDependencies(t *testing.T) {
	for _, program := range []string{"./worker", "./names"} {
		for pkg := range goList(t, program, "-deps") {
			for _, bad := range []string{"net", "os/exec", "os/user", "plugin", "net/http", "crypto/tls", "aldente/broker"} {
				if pkg == bad || bad == "aldente/broker" && isIn(pkg, bad) {
					t.Errorf("%s is linked with %s", program, pkg)
				}
			}
		}
	}
	for pkg := range goList(t, "./broker", "-deps") {
		if isIn(pkg, "aldente/worker") || isIn(pkg, "aldente/names") {
			t.Errorf("the broker is linked with %s", pkg)
		}
	}
	for imp := range goList(t, "./worker/packet", "-deps") {
		if isIn(imp, "aldente") && imp != "aldente/worker/packet" {
			t.Errorf("worker/packet is linked with %s", imp)
		}
	}
}

// TestClientLibraries: what draws screens and serves metrics is linked into the client
// alone, which holds nothing of a guest's. Its parts stand on what it asks with.
func TestClientLibraries(t *testing.T) {
	found := 0
	for program, isClient := range map[string]bool{"./broker": false, "./worker": false, "./ctl": true} {
		for pkg := range goList(t, program, "-deps") {
			for _, tree := range []string{"charm.land", "github.com/charmbracelet", "github.com/prometheus", "google.golang.org/protobuf", "net/http", "aldente/ctl"} {
				switch {
				case !isIn(pkg, tree):
				case isClient:
					found++
				default:
					t.Errorf("%s is linked with %s", program, pkg)
				}
			}
		}
	}
	if found == 0 {
		t.Error("the client has none of them: are the names right?")
	}
	for pkg, imports := range goList(t, "./ctl/...") {
		for _, imp := range imports {
			if pkg != "aldente/ctl" && isIn(imp, "aldente") && !slices.Contains([]string{"aldente/broker/control/api", "aldente/broker/foreign", "aldente/ctl/watch"}, imp) {
				t.Errorf("%s imports %s", pkg, imp)
			}
		}
	}
}

// TestWhoMakesSystemCalls parses the lane and the translators, and what answers questions
// for names: they may name errors of the kernel and nothing that enters it.
func TestWhoMakesSystemCalls(t *testing.T) {
	for _, program := range []string{"worker", "names"} {
		whoMakesSystemCalls(t, filepath.Join("..", program))
	}
}

func whoMakesSystemCalls(t *testing.T, root string) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		switch dir, _ := filepath.Rel(root, filepath.Dir(path)); strings.Split(dir, "/")[0] {
		case ".", "link", "kernel", "vhostuser": // the program itself locks down; these do the work
			return nil
		}
		if strings.HasSuffix(filepath.Dir(path), "test") { // of tests: TestWorkerDependencies sees what is linked
			return nil
		}
		checkCalls(t, path)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func checkCalls(t *testing.T, path string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Error(err)
		return
	}
	for _, imp := range f.Imports {
		name, _ := strconv.Unquote(imp.Path.Value)
		for _, bad := range []string{"golang.org/x/sys/unix", "os", "net", "os/exec", "io/ioutil", "runtime/cgo"} {
			if name == bad {
				t.Errorf("%s imports %s", path, bad)
			}
		}
		if name == "syscall" && imp.Name != nil {
			t.Errorf("%s renames syscall", path)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == "syscall" && x.Obj == nil {
			if name := sel.Sel.Name; name != "Errno" && !(len(name) > 1 && name[0] == 'E' && strings.ToUpper(name) == name) {
				t.Errorf("%s uses syscall.%s", path, name)
			}
		}
		return true
	})
}
