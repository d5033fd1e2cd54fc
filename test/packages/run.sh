#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages in fresh trees of Debian, beside what is to find them: rootless
# Podman, RootlessKit and libvirt, which nothing is configured for. Then an upgrade and the
# removal with guests running, and what the removal leaves: nothing. Needs root, debootstrap
# and the network, and 2 GB below build/packages for each tree.
#
#	test/packages/run.sh [SUITE]...      trixie and sid if not said
#	DEBS=FOLDER test/packages/run.sh     with the packages in there, not of "make deb"
set -eu
cd "$(dirname "$0")/../.."
repo=$PWD
test "$(id -u)" = 0 || { echo "$0: needs root, to make the trees" >&2; exit 1; }
debs=${DEBS:-}
if test -z "$debs"; then
	debs=$repo/build/deb
	rm -rf "$debs"
	packaging/deb.sh "$debs"
fi
# Compiled here: there is no Go in there.
CGO_ENABLED=0 go test -c -o build/qemu.test ./test/qemu
CGO_ENABLED=0 go build -ldflags '-s -w' -o build/guest ./test/qemu/guest

test $# -gt 0 || set -- trixie sid
for suite in "$@"; do
	base=$(test/packages/base.sh "$suite")
	echo "== $suite"
	tree=$repo/build/packages/$suite.tree
	rm -rf "$tree"
	cp -a "$base" "$tree"
	mkdir -p "$tree/old" "$tree/debs" "$tree/repo"
	cp "$debs"/*.deb "$tree/debs"
	cp test/packages/inside.sh "$tree/debs"
	# As a first step what needs the network; it ends before the rest begins.
	unshare -m sh -c 'mount --make-rprivate / && mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && mount --bind "$2" "$1/repo" && exec chroot "$1" sh /debs/inside.sh install' sh "$tree" "$repo"
	# A root, not only a changed one: from within the latter, nobody may make user namespaces.
	# proc and sysfs are mounted anew and bare: the kernel lets a container mount its own only
	# where they are wholly visible.
	unshare -m -n -p -f --kill-child --propagation private sh -c '
		set -e
		tree=$1 repo=$2
		mount --bind "$tree" "$tree"
		mount --rbind /dev "$tree/dev"
		mount --bind "$repo" "$tree/repo"
		cd "$tree"
		mount -t proc proc proc
		mount -t sysfs sysfs sys
		mount -t cgroup2 cgroup2 sys/fs/cgroup || true
		for d in tmp run var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $d; done
		pivot_root . old
		umount -l /old
		mount --make-rshared /
		exec sh /debs/inside.sh check
	' sh "$tree" "$repo"
	echo "== $suite: all is well"
done
