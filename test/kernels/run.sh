#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Boots Debian's kernels under QEMU, without hardware's help, and runs the programs and the core of the end-to-end
# tests on each: what ./runs lists. Results are saved below docs/kernels, of which docs/kernels.md is made. Needs
# qemu-system-x86 and qemu-system-arm, kmod, e2fsprogs, xz-utils, Go, the network, and 3 GB below build/kernels; not root.
#
#	test/kernels/run.sh [NAME]...      all of ./runs if not said
set -eu
cd "$(dirname "$0")/../.."
. test/kernels/image.sh
. test/kernels/selinux-tree.sh
needs kmod depmod modprobe
needs e2fsprogs mke2fs
needs xz-utils xz
needs cpio busybox

# programs ARCH: the archive that a machine takes its job from.
programs() {
	job=$cache/job-$1
	rm -rf "$job" "$job.tar"
	mkdir -p "$job/bin" "$job/test/stream"
	for p in aldente=broker aldente-worker=worker aldente-names=names aldentectl=ctl; do
		GOARCH=$1 CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X aldente/broker/supervise.libexecDir=/usr/libexec/aldente' -o "$job/bin/${p%=*}" "./${p#*=}"
	done
	for n in pasta passt slirp4netns; do ln -s aldente "$job/bin/$n"; done
	ln -s aldentectl "$job/bin/pesto"
	for t in test test/stream; do
		GOARCH=$1 CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$job/$t.test" "./$t"
	done
	cp go.mod "$job/"
	cp test/kernels/inside.sh "$job/job"
	cp test/kernels/select test/kernels/apparmor.sh test/kernels/selinux.sh "$job/"
	cp -r packaging/apparmor "$job/"
	chmod 755 "$job/job"
	tar -C "$job" -cf "$job.tar" .
	rm -rf "$job"
}

clients='bash coreutils curl iproute2 iputils-ping util-linux mount procps kmod libc-bin dash grep sed gawk findutils busybox-static bind9-dnsutils
	netcat-openbsd iperf3 udhcpc ethtool traceroute iputils-tracepath tcpdump libcap2-bin apparmor'
results=${RESULTS:-docs/kernels}
mkdir -p "$results"
built=
failed=
names=${*:-$(sed -n 's/^\([a-z0-9-]*\)|.*/\1/p' test/kernels/runs)}
for name in $names; do
	line=$(grep "^$name|" test/kernels/runs) || { echo "$0: test/kernels/runs has no $name" >&2; exit 1; }
	IFS='|' read -r _ suite arch cmdline what _ <<-END
		$line
	END
	test "$suite" != = || continue # another machine's
	case $arch in
	amd64) needs qemu-system-x86 qemu-system-x86_64 ;;
	arm64) needs qemu-system-arm qemu-system-aarch64 ;;
	esac
	kernel "$suite" "$arch"
	initrd "$arch"
	# shellcheck disable=SC2086
	case $cmdline in
	*module=selinux*) selinux_tree trixie "$arch" $clients ;;
	*) tree trixie "$arch" clients $clients -- libvirt-daemon-driver-qemu libvirt-daemon ;;
	esac
	case " $built " in
	*" $arch "*) ;;
	*) programs "$arch"; built="$built $arch" ;;
	esac
	# Debian 12's kernel does not get through its start with a clock of instructions; 11's was not tried.
	case $suite in
	bullseye | bookworm) CLOCK='-rtc base=utc' ;;
	*) CLOCK= ;;
	esac
	echo "== $name: $(cat "$kernel/version"), $what"
	out=$cache/$name.out
	boot "$arch" "$cache/job-$arch.tar" "$out" 2400 "quiet $cmdline" || true
	if ! grep -q '^end' "$out"; then
		tail -n 30 "$out.console" "$out"
		echo "$name: the machine did not come to its end" >&2
		failed="$failed $name"
		continue
	fi
	go run ./test/kernels/report -save "$results" -name "$name" <"$out" || failed="$failed $name"
done
go run ./test/kernels/report
test -z "$failed" || { echo "failed:$failed" >&2; exit 1; }
