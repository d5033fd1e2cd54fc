// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/policy/calls"
)

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64,
	"ppc64le": unix.AUDIT_ARCH_PPC64LE, "riscv64": unix.AUDIT_ARCH_RISCV64, "s390x": unix.AUDIT_ARCH_S390X}

// orderOf is the byte order of an architecture.
func orderOf(arch string) binary.ByteOrder {
	if arch == "s390x" {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

func readProgram(t *testing.T, name, arch string) []unix.SockFilter {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("filters", name+"_"+arch+".bpf"))
	if err != nil {
		t.Fatal(err)
	}
	prog, err := decode(raw, orderOf(arch))
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

// numbers returns the system calls of an architecture by number.
func numbers(t *testing.T, arch string) map[uint32]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("filters", "names_"+arch+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	m := map[uint32]string{}
	for line := range strings.Lines(string(raw)) {
		var nr uint32
		var name string
		if _, err := fmt.Sscanf(line, "%d %s", &nr, &name); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		m[nr] = name
	}
	return m
}

// TestFiltersDoWhatTheListsSay runs each compiled program over every system
// call, with the arguments of its rules and with arguments next to them, and
// compares with the list.
func TestFiltersDoWhatTheListsSay(t *testing.T) {
	for _, arch := range calls.Arches() {
		names := numbers(t, arch)
		for _, all := range calls.All() {
			list := all.For(arch)
			for suffix, denied := range map[string]uint32{"": unix.SECCOMP_RET_KILL_PROCESS, "-trap": unix.SECCOMP_RET_TRAP} {
				t.Run(list.Name+suffix+"_"+arch, func(t *testing.T) {
					prog := readProgram(t, list.Name+suffix, arch)
					tried := 0
					for nr := range uint32(1100) {
						for _, args := range argumentsFor(&list, names[nr]) {
							want := denied
							if names[nr] != "" && list.Permits(arch, names[nr], args) {
								want = unix.SECCOMP_RET_ALLOW
							}
							got := evaluate(prog, &seccompData{nr: nr, arch: auditArch[arch], args: args})
							if got != want {
								t.Fatalf("%s(%#x): %#x, want %#x", names[nr], args, got, want)
							}
							tried++
						}
					}
					t.Logf("%d calls tried, %d instructions", tried, len(prog))
				})
			}
		}
	}
}

// argumentsFor returns arguments that matter to a call's rules: each rule's
// own, those with a bit changed, and random ones.
func argumentsFor(list *calls.List, call string) [][6]uint64 {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() (a [6]uint64) {
		for i := range a {
			a[i] = rng.Uint64() >> (rng.UintN(4) * 16)
		}
		return a
	}
	all := [][6]uint64{{}, {^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}, random(), random()}
	for kind := range uint64(21) { // which call of socketcall(2) or ipc(2)
		all = append(all, [6]uint64{kind}, [6]uint64{kind, 1, 6}, [6]uint64{kind, 1, 6, unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC})
	}
	for i := range list.Rules {
		r := &list.Rules[i]
		if r.Call != call {
			continue
		}
		exact := random()
		for _, c := range r.Args {
			exact[c.Index] = c.Value | exact[c.Index]&^c.Mask
		}
		all = append(all, exact)
		for _, c := range r.Args {
			for bit := range 64 {
				changed := exact
				changed[c.Index] ^= 1 << bit
				all = append(all, changed)
			}
		}
	}
	return all
}

// TestForeignArchitectures tries every call with the numbers of another
// architecture, and of x32.
func TestForeignArchitectures(t *testing.T) {
	for _, list := range calls.All() {
		for _, arch := range calls.Arches() {
			foreign := []seccompData{{arch: unix.AUDIT_ARCH_I386}, {arch: unix.AUDIT_ARCH_ARM},
				{arch: unix.AUDIT_ARCH_PPC64}, {arch: unix.AUDIT_ARCH_S390}}
			for other, value := range auditArch {
				if other != arch {
					foreign = append(foreign, seccompData{arch: value})
				}
			}
			if arch == "amd64" {
				foreign = append(foreign, seccompData{nr: 0x40000000, arch: auditArch[arch]}) // __X32_SYSCALL_BIT
			}
			prog := readProgram(t, list.Name, arch)
			for nr := range uint32(600) {
				for _, d := range foreign {
					d.nr |= nr
					if got := evaluate(prog, &d); got != unix.SECCOMP_RET_KILL_PROCESS {
						t.Fatalf("%s for %s: %d of %#x: %#x", list.Name, arch, d.nr, d.arch, got)
					}
				}
			}
		}
	}
}

// TestNeverInTheWorker holds the lists of worker and names against what they must not
// contain whatever is added to them later.
func TestNeverInTheWorker(t *testing.T) {
	never := strings.Fields(`socket socketpair connect bind listen accept sendto sendmsg sendmmsg
		open openat openat2 creat execve execveat memfd_create memfd_secret
		prctl arch_prctl setns unshare clone3 fork vfork mount umount2 pivot_root chroot move_mount fsopen fsmount open_tree
		io_uring_setup io_uring_enter io_uring_register ptrace process_vm_readv process_vm_writev
		bpf userfaultfd perf_event_open keyctl add_key request_key kill tkill pidfd_open pidfd_getfd pidfd_send_signal
		mprotect pkey_mprotect mremap remap_file_pages ioctl capset setuid setgid setresuid setgroups
		init_module finit_module kexec_load reboot swapon settimeofday clock_settime shmget msgget semget mq_open
		rt_sigqueueinfo rt_tgsigqueueinfo prlimit64 setrlimit personality modify_ldt iopl ioperm landlock_create_ruleset`)
	for _, list := range []calls.List{calls.WorkerStart(), calls.Worker(), calls.WorkerVhostStart(), calls.WorkerVhost(), calls.NamesStart(), calls.Names()} {
		for _, r := range list.Rules {
			carrier := r.Call == "ioctl" && len(r.Args) == 1 && r.Args[0] == calls.Arg{Index: 1, Mask: ^uint64(0), Value: unix.TUNSETCARRIER} &&
				(list.Name == "worker" || list.Name == "worker-start")
			for _, n := range never {
				if r.Call == n && !carrier {
					t.Errorf("%s permits %s", list.Name, n)
				}
			}
		}
	}
	for _, list := range []calls.List{calls.Worker(), calls.WorkerVhost(), calls.Names()} {
		for _, r := range list.Rules {
			pipeSize := r.Call == "fcntl" && len(r.Args) == 2 && r.Args[0] == calls.Arg{Index: 1, Mask: ^uint64(0), Value: unix.F_SETPIPE_SZ}
			if r.Call == "seccomp" || r.Call == "epoll_create1" || r.Call == "eventfd2" || r.Call == "fcntl" && !pipeSize && !(list.Name == "worker-vhost" && r.User == "worker/vhostuser") {
				t.Errorf("%s permits %s, which only start-up needs", list.Name, r.Call)
			}
		}
	}
}

// TestAlwaysLimited: some calls must never be permitted by number alone.
func TestAlwaysLimited(t *testing.T) {
	limited := map[string]bool{"mmap": true, "clone": true, "futex": true, "madvise": true, "tgkill": true, "setsockopt": true,
		"getsockopt": true, "accept4": true, "splice": true, "fcntl": true, "seccomp": true, "socket": true, "prctl": true, "preadv2": true, "ioctl": true}
	for _, list := range []calls.List{calls.WorkerStart(), calls.Worker(), calls.WorkerVhostStart(), calls.WorkerVhost(), calls.NamesStart(), calls.Names()} {
		for _, r := range list.Rules {
			if limited[r.Call] && len(r.Args) == 0 {
				t.Errorf("%s permits %s with any arguments", list.Name, r.Call)
			}
		}
	}
}

// TestListsAreWithinOthers: filters stack, so what an earlier list does not
// permit is lost to a later one: the worker's start-up list precedes those of its
// running stage, and the broker's precedes all in a worker that replaces another.
func TestListsAreWithinOthers(t *testing.T) {
	within := map[string][]calls.List{
		"worker":             {calls.WorkerStart(), calls.Broker()},
		"worker-start":       {calls.Broker()},
		"worker-vhost":       {calls.WorkerVhostStart(), calls.BrokerVhost()},
		"worker-vhost-start": {calls.BrokerVhost()},
		"names":              {calls.NamesStart(), calls.Broker(), calls.BrokerVhost()},
		"names-start":        {calls.Broker(), calls.BrokerVhost()},
	}
	for _, list := range calls.All() {
		for _, r := range list.Rules {
			var args [6]uint64
			for _, c := range r.Args {
				args[c.Index] = c.Value
			}
			for _, before := range within[list.Name] {
				if r.Call == "tgkill" {
					args[0] = calls.Self
				}
				if r.Call == "tgkill" && (before.Name == "broker" || before.Name == "broker-vhost") {
					args[0], args[2] = 1, 33 // in a PID namespace of its own, to have its threads make a call
				}
				if !before.Permits(r.Arch, r.Call, args) {
					t.Errorf("%s permits %s(%#x), %s does not", list.Name, r.Call, args, before.Name)
				}
			}
		}
	}
}

func TestRulesAreExplained(t *testing.T) {
	for _, list := range calls.All() {
		if list.Doc == "" {
			t.Errorf("%s: no description", list.Name)
		}
		for _, r := range list.Rules {
			if r.Why == "" || r.User == "" {
				t.Errorf("%s: %s: no reason or no user", list.Name, r.Call)
			}
		}
	}
}

func number(n int) func() int { return func() int { return n } }

func TestBindSelf(t *testing.T) {
	if selfPlaceholder != calls.Self || uidPlaceholder != calls.OwnUID || gidPlaceholder != calls.OwnGID {
		t.Fatal("placeholders differ")
	}
	prog := readProgram(t, FilterWorker, "amd64")
	kill := func(pid uint64) uint32 {
		return evaluate(prog, &seccompData{nr: 234, arch: auditArch["amd64"], args: [6]uint64{pid, pid}})
	}
	bind(prog, number(4711), number(4712), number(4713))
	for pid, want := range map[uint64]uint32{
		4711: unix.SECCOMP_RET_ALLOW, 1: unix.SECCOMP_RET_KILL_PROCESS, calls.Self: unix.SECCOMP_RET_KILL_PROCESS,
		4711 | 1<<32: unix.SECCOMP_RET_KILL_PROCESS,
	} {
		if got := kill(pid); got != want {
			t.Errorf("tgkill(%d): %#x, want %#x", pid, got, want)
		}
	}
	prog = readProgram(t, FilterBroker, "amd64")
	bind(prog, number(4711), number(4712), number(4713))
	for _, c := range []struct {
		nr   uint32
		args [6]uint64
		want uint32
	}{
		{117, [6]uint64{4712, 4712, 4712}, unix.SECCOMP_RET_ALLOW}, // setresuid
		{119, [6]uint64{4713, 4713, 4713}, unix.SECCOMP_RET_ALLOW}, // setresgid
		{117, [6]uint64{4712, 0, 4712}, unix.SECCOMP_RET_KILL_PROCESS},
		{117, [6]uint64{4713, 4713, 4713}, unix.SECCOMP_RET_KILL_PROCESS},
		{119, [6]uint64{calls.OwnGID, calls.OwnGID, calls.OwnGID}, unix.SECCOMP_RET_KILL_PROCESS},
	} {
		if got := evaluate(prog, &seccompData{nr: c.nr, arch: auditArch["amd64"], args: c.args}); got != c.want {
			t.Errorf("call %d%v: %#x, want %#x", c.nr, c.args, got, c.want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, n := range []int{0, 7, 9, (unix.BPF_MAXINSNS + 1) * sizeofFilter} {
		if _, err := decode(make([]byte, n), binary.LittleEndian); err == nil {
			t.Errorf("%d bytes accepted", n)
		}
	}
}

func TestCallName(t *testing.T) {
	for nr, want := range map[int]string{unix.SYS_SOCKET: "socket", unix.SYS_READ: "read", unix.SYS_IO_URING_SETUP: "io_uring_setup", 99999: "call 99999", -1: "call -1"} {
		if got := CallName(nr); got != want {
			t.Errorf("%d: %q, want %q", nr, got, want)
		}
	}
}

// TestFiltersAreGenerated makes the filters anew and compares.
func TestFiltersAreGenerated(t *testing.T) {
	for what, path := range map[string]string{"libseccomp's header": "/usr/include/seccomp.h", "a C compiler": "/usr/bin/gcc"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("needs %s (Debian: libseccomp-dev, gcc): %v", what, err)
		}
	}
	dir := t.TempDir()
	cmd := exec.Command("go", "run", "-tags", "seccompgen", "./generate", "-o", dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := os.ReadDir("filters")
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != len(stored) {
		t.Errorf("%d files stored, %d generated", len(stored), len(made))
	}
	for _, e := range made {
		want, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("filters", e.Name()))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what `make generate` makes", e.Name())
		}
	}
}
