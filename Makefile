# SPDX-License-Identifier: Apache-2.0

PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec/aldente
DATADIR    ?= $(PREFIX)/share
MANDIR     ?= $(DATADIR)/man
FUZZTIME   ?= 10s
SOAK       ?= 20m
CHAOS      ?= 4096
VHOSTCHAOS ?= 1024
KRUN       ?= 1024
BENCH      ?= full
SHORT      ?=
GO         ?= go

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Without cgo, as the programs are built: with it, the C library makes system
# calls of its own, which no filter of ours permits.
GOTEST      = CGO_ENABLED=0 $(GO) test
GOBUILD     = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
LDFLAGS     = -s -w -X aldente/broker/supervise.libexecDir=$(LIBEXECDIR)
# Version, commit and its time, from the repository or the archive.
RELEASE    := $(or $(shell packaging/version.sh),$(error packaging/version.sh fails))
TOLD        = -X aldente/broker/cli.Version=$(word 1,$(RELEASE)) $(if $(filter-out unknown,$(word 2,$(RELEASE))),-X aldente/broker/cli.Commit=$(word 2,$(RELEASE)))
TESTFLAGS   = -count=1 $(if $(SHORT),-short)

# Of another architecture the client does not run here.
CTL = $(if $(GOARCH)$(GOOS),GOOS= GOARCH= CGO_ENABLED=0 $(GO) run -trimpath ./ctl,bin/aldentectl)

export CMD ?= ip address; ip route; ip -6 route; getent hosts example.org || echo 'example.org: no answer'

.PHONY: all run test unit e2e permissions test-podman test-libvirt lint bench bench-compare bench-slirp bench-stream bench-vhost bench-sandbox performance pictures fuzz fuzz-coverage generate debug-filter soak chaos chaos-vhost changes krun windows test-arches mutate install dist deb rpm test-packages test-deb test-rpm test-systemd test-kernels test-lsm reproducible clean

## all: the programs, static, and the names by which pasta, passt and pesto are called
all:
	$(GOBUILD) -ldflags '$(LDFLAGS) $(TOLD)' -o bin/aldente ./broker
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o bin/aldente-worker ./worker
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o bin/aldente-names ./names
	$(GOBUILD) -ldflags '$(LDFLAGS) $(TOLD)' -o bin/aldentectl ./ctl
	ln -sf aldente bin/pasta
	ln -sf aldente bin/passt
	ln -sf aldente bin/slirp4netns
	ln -sf aldentectl bin/pesto

## run: a command in a connected namespace: make run CMD='ip address; ip route'
run: all
	@bin/pasta --config-net -- sh -c "$$CMD"

## test: everything; as root on Debian it installs the clients that it needs, and finds permissions that nothing uses (SHORT=1: the light part)
test: all
	sh test/setup.sh
	$(GO) vet ./...
	$(GO) build -o build/permissions ./test/permissions
	{ $(GOTEST) -json $(TESTFLAGS) $$($(GO) list ./... | grep -v '^aldente/test'); \
	  $(if $(SHORT),,build/permissions -json) env $(GOTEST) -json $(TESTFLAGS) -p 1 -timeout 30m ./test/...; } | $(GO) run ./test/summary env $(GOTEST) -json $(TESTFLAGS) -timeout 10m

## unit: without the end-to-end tests
unit:
	$(GOTEST) -json $(TESTFLAGS) $$($(GO) list ./... | grep -v '^aldente/test') | $(GO) run ./test/summary

## e2e: the end-to-end tests; RUN selects by name
e2e: all
	$(GOTEST) -json $(TESTFLAGS) -p 1 -timeout 30m -run '$(RUN)' ./test/... | $(GO) run ./test/summary

## permissions: the end-to-end tests alone (RUN selects), recorded: a permission that no process uses is an error; root
permissions: all
	$(GO) build -o build/permissions ./test/permissions
	build/permissions $(if $(RUN),-counts) $(MAKE) e2e

## test-podman: rootless Podman, RootlessKit, Docker and BuildKit with these programs; root, debootstrap, 1.2 GB; RUN selects by name
test-podman: all
	test/podman/run.sh $(if $(RUN),-test.run '$(RUN)')

## test-libvirt: virtual machines with Debian's newest libvirt, QEMU and DPDK, by stream and vhost-user; root, debootstrap, 1 GB; RUN selects by name
test-libvirt: all
	test/libvirt.sh $(if $(RUN),-test.run '$(RUN)')

lint:
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); test -z "$$out" || { echo "gofmt: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) mod verify
	$(GO) mod tidy -diff
	@if command -v mandoc >/dev/null; then echo test/manlint.sh && test/manlint.sh; else echo 'mandoc is not installed: man pages are not checked'; fi

## bench: side by side with passt's pasta and slirp4netns; root; BENCH=short takes under three minutes
bench: all
	$(GO) build -o build/bench ./bench
	build/bench $(if $(filter short,$(BENCH)),-short) -csv build/bench.csv $(BENCHFLAGS)

## bench-compare: the last run of bench beside one that was saved, BENCH_SAVED
BENCH_SAVED = docs/performance/short.csv
bench-compare:
	$(GO) build -o build/bench ./bench
	build/bench -csv build/bench.csv -compare $(BENCH_SAVED)

## bench-slirp: slirp4netns beside aldente by that name: bulk, round trips, start to ready
bench-slirp: all
	$(GO) build -o build/bench ./bench
	build/bench -as-slirp4netns -only 'TCP (up|down), MTU (1500|65520), default, 1 flows|^request/response (tcp|udp), (1|16) clients|^start-up and idle memory' $(if $(filter short,$(BENCH)),-short) $(BENCHFLAGS)

## bench-stream: the same behind QEMU's stream socket, with passt and gvproxy; BENCH=short takes under a minute
bench-stream: all
	$(GO) build -o build/bench-stream ./bench/stream
	build/bench-stream $(if $(filter short,$(BENCH)),-short) $(STREAMFLAGS)

## bench-vhost: vhost-user: passt, our stream socket and our vhost-user, with a stand-in for the front-end; BENCH=short takes about a minute
bench-vhost: all
	$(GO) build -o build/bench-stream ./bench/stream
	build/bench-stream -vhost-user $(if $(filter short,$(BENCH)),-short) $(STREAMFLAGS)

## bench-sandbox: aldente beside itself without its sandbox; root
bench-sandbox: all
	$(GO) build -o build/bench-sandbox ./bench/sandbox
	build/bench-sandbox $(BENCHFLAGS)

## performance: the tables and plots of docs/performance.md, of the results in docs/performance
performance:
	$(GO) run ./bench/render

## pictures: the SVG of docs/pictures, of what the programs print at that moment; root
pictures: all
	ALDENTE_PICTURES=$(CURDIR)/docs/pictures $(GOTEST) -count=1 -run 'TestPictures$$' ./test
	$(GO) run ./ctl/picture docs/pictures/*.ansi

## fuzz: each target for FUZZTIME; RUN selects by package and name
fuzz:
	GO='$(GO)' test/fuzz.sh $(FUZZTIME) '$(RUN)'

## fuzz-coverage: what of the parsers the targets' seeds alone reach; less than 90 % of the statements is an error
fuzz-coverage:
	fuzz/coverage.sh 90

## generate: the seccomp filters, with libseccomp (Debian: libseccomp-dev, gcc)
generate:
	CGO_ENABLED=1 $(GO) run -tags seccompgen ./policy/generate -o policy/filters -doc docs/security-calls.md

## debug-filter: programs whose filters trap, so that Go prints who made a forbidden call
debug-filter:
	$(GOBUILD) -tags debugfilter -o build/debug/aldente ./broker
	$(GOBUILD) -tags debugfilter -o build/debug/aldente-worker ./worker
	$(GOBUILD) -tags debugfilter -o build/debug/aldente-names ./names
	ln -sf aldente build/debug/pasta
	ln -sf aldente build/debug/passt

## soak: connections open, close, stall and break for SOAK, under every kind of trouble; nothing may be lost, nothing grow
soak: all
	ALDENTE_SOAK=$(SOAK) $(GOTEST) -count=1 -v -timeout 0 -run 'TestSoak$$' ./test

## changes: ten thousand changes of port rules while the instance runs; nothing may grow
changes: all
	ALDENTE_CHANGES=10000 $(GOTEST) -count=1 -v -timeout 0 -run 'TestPestoOften$$' ./test

## krun: KRUN MiB each way, 1 GiB if not said, behind a monitor as libkrun's, by each type of socket; nothing may differ
krun: all
	ALDENTE_KRUN=$(KRUN) $(GOTEST) -count=1 -v -timeout 0 -run 'TestKrun$$' ./test/stream

## windows: every start-up, stopped before every system call, with processes that try to look in; minutes; root; RUN selects
windows: all
	ALDENTE_WINDOWS=every $(GOTEST) -count=1 -v -timeout 0 -run 'TestWindows$$/$(RUN)' ./test

## chaos: CHAOS MiB each way, 4 GiB if not said, past processes that are stopped at random: through tap, bypass and stream; nothing may differ
chaos: all
	ALDENTE_CHAOS=$(CHAOS) $(GOTEST) -count=1 -v -timeout 0 -p 1 -run 'TestChaos$$' ./test/...

## chaos-vhost: VHOSTCHAOS MiB each way and for each family, 1 GiB if not said, by vhost-user, whose front-end stalls, kicks late, has odd rings and rewrites headers
chaos-vhost: all
	ALDENTE_CHAOS=$$((2 * $(VHOSTCHAOS))) $(GOTEST) -count=1 -v -timeout 0 -run 'TestChaos$$' ./test/vhost

## test-arches: vets and builds for each architecture with filters, and runs unit tests under qemu-user (Debian: qemu-user-static); many minutes; ARCHES selects
test-arches:
	GO='$(GO)' sh test/arches.sh $(ARCHES)

## mutate: breaks the code on purpose, line by line, and has the tests notice; minutes; RUN selects
mutate:
	GO='$(GO)' RUN='$(RUN)' sh test/mutate.sh

## install: below PREFIX, with SLIRP4NETNS=1 by that name too. Nobody may read the program but its owner, root: a guest then cannot trace the agent (SECURITY.md)
install: all
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man5
	install -m 711 bin/aldente $(DESTDIR)$(BINDIR)/aldente
	ln -sf aldente $(DESTDIR)$(BINDIR)/pasta
	ln -sf aldente $(DESTDIR)$(BINDIR)/passt
	install -m 755 bin/aldentectl $(DESTDIR)$(BINDIR)/aldentectl
	ln -sf aldentectl $(DESTDIR)$(BINDIR)/pesto
	install -m 755 bin/aldente-worker $(DESTDIR)$(LIBEXECDIR)/aldente-worker
	install -m 755 bin/aldente-names $(DESTDIR)$(LIBEXECDIR)/aldente-names
	install -m 644 $(filter-out man/slirp4netns.1,$(wildcard man/*.1)) $(DESTDIR)$(MANDIR)/man1
	install -m 644 man/*.5 $(DESTDIR)$(MANDIR)/man5
	$(if $(SLIRP4NETNS),ln -sf aldente $(DESTDIR)$(BINDIR)/slirp4netns && install -m 644 man/slirp4netns.1 $(DESTDIR)$(MANDIR)/man1)
	install -D -m 644 packaging/completions/pesto.bash $(DESTDIR)$(DATADIR)/bash-completion/completions/pesto
	install -D -m 644 packaging/completions/_pesto $(DESTDIR)$(DATADIR)/zsh/site-functions/_pesto
	install -D -m 644 packaging/completions/pesto.fish $(DESTDIR)$(DATADIR)/fish/vendor_completions.d/pesto.fish
	install -d $(DESTDIR)$(DATADIR)/bash-completion/completions $(DESTDIR)$(DATADIR)/zsh/site-functions $(DESTDIR)$(DATADIR)/fish/vendor_completions.d
	$(CTL) completion bash > $(DESTDIR)$(DATADIR)/bash-completion/completions/aldentectl
	$(CTL) completion zsh > $(DESTDIR)$(DATADIR)/zsh/site-functions/_aldentectl
	$(CTL) completion fish > $(DESTDIR)$(DATADIR)/fish/vendor_completions.d/aldentectl.fish

## dist: archives of the commit below build/dist: the source with all that it needs, static programs for each architecture, SBOM, checksums, provenance
dist:
	GO='$(GO)' packaging/dist.sh build/dist

## deb: Debian packages of the commit below build/deb; Debian, debhelper, libseccomp-dev
deb:
	packaging/deb.sh build/deb

## rpm: RPM packages of the commit below build/rpm; rpmbuild; rpmlint, if installed, has nothing to say
rpm:
	packaging/rpm.sh build/rpm

## test-packages: the Debian packages in fresh Debian trees, SUITES="trixie sid", with Podman, libvirt and RootlessKit; root, debootstrap, 2 GB
test-packages:
	test/packages/run.sh $(SUITES)

## test-deb: the Debian packages, built in a fresh Debian unstable by what is there; its lintian, and autopkgtest; root, debootstrap, 2 GB
test-deb:
	test/packages/build.sh

## test-rpm: the RPM packages in an empty root; rpm, root
test-rpm: rpm
	test/packages/rpm.sh build/rpm

## test-systemd: the units of packaging/systemd in a Debian with systemd, under QEMU (BOOT=container: in namespaces); root, debootstrap, 3 GB
test-systemd:
	test/systemd/run.sh

## test-kernels: the programs and the core of the tests on Debian's kernels under QEMU, which lack one thing or another: docs/kernels.md; Debian, qemu-system-x86, qemu-system-arm, 3 GB; RUN selects by name
test-kernels:
	nice -n 19 test/kernels/run.sh $(RUN)

## test-lsm: the same under AppArmor and SELinux, which enforce our profiles and our module there; for SELinux as root
test-lsm:
	nice -n 19 test/kernels/run.sh apparmor selinux

## reproducible: builds everything of "dist" and the Debian packages twice, in other folders, by other users, with other clocks: all has to be the same; root
reproducible:
	GO='$(GO)' test/reproducible.sh

clean:
	rm -rf bin build
