#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Vets and builds for every architecture that there are filters for, and runs the unit
# tests of packages that can run under qemu-user: no seccomp, no Landlock, no
# namespaces there. Prints a table, which docs/architectures.md keeps.
#
#	test/arches.sh [ARCH…]      ARCHES_RUN=no: vet and build alone
set -u
cd "$(dirname "$0")/.." || exit 1
GO=${GO:-go}
export CGO_ENABLED=0
run=${ARCHES_RUN:-yes}

# Packages whose tests need nothing of the kernel that qemu-user has not.
packages="ipc ipc/sock worker/packet worker/vhost worker/arp worker/ndp worker/dhcp worker/dhcpv6 worker/store worker/flow
worker/datagram worker/udp worker/icmp names/dns names/frame names/hello broker/rtnl broker/control/wire broker/egress policy/calls"

[ $# -gt 0 ] || set -- $(ls policy/filters/names_*.txt | sed 's/.*names_\(.*\)\.txt/\1/')
native=$($GO env GOHOSTARCH)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0

emulator() {
	case $1 in
	"$native") echo ;;
	amd64) echo qemu-x86_64-static ;;
	arm64) echo qemu-aarch64-static ;;
	*) echo "qemu-$1-static" ;;
	esac
}

# step NAME COMMAND…: its output only if it fails.
step() {
	what=$1
	shift
	if "$@" >"$work/log" 2>&1; then
		return 0
	fi
	echo "arches: $what fails:" >&2
	cat "$work/log" >&2
	failed=1
	return 1
}

echo "| Architecture | Vet | Build | Unit tests |"
echo "|---|---|---|---|"
for arch; do
	GOARCH=$arch
	export GOARCH
	vet=fails build=fails tests="not run"
	step "vet for $arch" "$GO" vet ./... && vet=passes
	step "build for $arch" sh -c "for p in broker worker names ctl; do '$GO' build -trimpath -o '$work/'\$p ./\$p || exit 1; done" && build=passes
	qemu=$(emulator "$arch")
	if [ "$run" = yes ] && { [ -z "$qemu" ] || command -v "$qemu" >/dev/null; }; then
		passed=0 all=0
		for p in $packages; do
			all=$((all + 1))
			# The test is compiled for the architecture and run in its package's folder. Without
			# a tool chain of its own under qemu, what asks for one is left out by the test.
			if step "compiling $p for $arch" "$GO" test -c -vet=off -o "$work/unit.test" "./$p" &&
				(cd "$p" && step "$p on $arch" $qemu "$work/unit.test" -test.short -test.timeout 300s); then
				passed=$((passed + 1))
			fi
		done
		[ $passed -eq $all ] || failed=1
		tests="$passed of $all packages pass${qemu:+, $qemu}"
	fi
	echo "| $arch | $vet | $build | $tests |"
done
exit $failed
