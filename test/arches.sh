#!/bin/sh
# SPDX-License-Identifier: Apache-2.0

# Vets and builds for every architecture that there are filters for, and runs the unit
# tests of packages that can run under qemu-user: no seccomp, no Landlock, no
# namespaces there. What came of it is kept in docs/architectures, of which the table in
# docs/architectures.md is made (TestArchitecturesTable).
#
#	test/arches.sh [ARCH…]      ARCHES_RUN=no: vet and build alone, and nothing is kept
set -u
cd "$(dirname "$0")/.." || exit 1
GO=${GO:-go}
export CGO_ENABLED=0
run=${ARCHES_RUN:-yes}

# Packages whose tests need nothing of the kernel that qemu-user has not.
packages="ipc ipc/sock worker/packet worker/vhost worker/arp worker/ndp worker/dhcp worker/dhcpv6 worker/store worker/flow
worker/datagram worker/udp worker/icmp names/dns names/frame names/hello broker/rtnl broker/control/wire broker/egress policy/calls"

# Under qemu-user on some architectures these fail, where its answers are others than a kernel's:
# to an access beyond a file's end, and to a group that is joined by an interface's number.
left_out='^(TestFault|TestGroups)$'

[ $# -gt 0 ] || set -- $(ls policy/filters/names_*.txt | sed 's/.*names_\(.*\)\.txt/\1/')
native=$($GO env GOHOSTARCH)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0
results=${RESULTS:-docs/architectures}
mkdir -p "$results"

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

for arch; do
	GOARCH=$arch
	export GOARCH
	vet=fails build=fails
	step "vet for $arch" "$GO" vet ./... && vet=passes
	step "build for $arch" sh -c "for p in broker worker names ctl; do '$GO' build -trimpath -o '$work/'\$p ./\$p || exit 1; done" && build=passes
	echo "$arch: vet $vet, build $build"
	qemu=$(emulator "$arch")
	test "$run" = yes || continue
	if [ -n "$qemu" ] && ! command -v "$qemu" >/dev/null; then
		echo "$arch: no $qemu: install the package qemu-user-static" >&2
		failed=1
		continue
	fi
	{
		echo "# SPDX-License-Identifier: Apache-2.0"
		echo "vet $vet"
		echo "build $build"
		echo "by ${qemu:-itself}$(test -z "$qemu" || "$qemu" --version | sed -n 's/.*version \([0-9.]*\).*/ \1/p')"
	} >"$work/said"
	for p in $packages; do
		# The test is compiled for the architecture and run in its package's folder. Without
		# a tool chain of its own under qemu, what asks for one is left out by the test.
		came=fails
		if step "compiling $p for $arch" "$GO" test -c -vet=off -o "$work/unit.test" "./$p" &&
			(cd "$p" && step "$p on $arch" $qemu "$work/unit.test" -test.short -test.timeout 300s ${qemu:+-test.skip "$left_out"}); then
			came=pass
		else
			failed=1
		fi
		echo "unit $p $came" >>"$work/said"
	done
	grep -c '^unit .* pass$' "$work/said" | sed "s/^/$arch: packages that pass: /"
	cp "$work/said" "$results/$arch.unit.txt"
done
exit $failed
