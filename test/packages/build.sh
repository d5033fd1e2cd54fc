#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the Debian packages in a fresh tree of Debian, unstable if not said, with what is there and
# nothing else: the packages that Build-Depends names, that Go, that libseccomp, and no network. Then
# lintian of that release, for which an error or a warning is a failure, and autopkgtest. Needs root, debootstrap and
# the network for the tree, and 2 GB below build/packages.
#
#	test/packages/build.sh [SUITE]       the packages stay in build/packages/SUITE.built
set -eu
cd "$(dirname "$0")/../.."
test "$(id -u)" = 0 || { echo "$0: needs root, to make the tree" >&2; exit 1; }
suite=${1:-sid}
base=$(test/packages/base.sh "$suite")
tree=$base.build
out=$base.built
rm -rf "$tree" "$out"
cp -a "$base" "$tree"
# Go has sources in there that are no part of ours.
echo 'module tree' >"$tree/go.mod"
mkdir -p "$tree/old" "$tree/source"
SOURCE=only packaging/dist.sh "$tree/source"
tar -C "$tree/source" --strip-components=1 -xf "$tree"/source/aldente-*.tar.xz
cp -r packaging/debian "$tree/source/debian"

# inside has the tree do something as a system of its own: "net" of this one's network, "alone" of none.
inside() {
	net=--net
	test "$1" = alone || net=
	shift
	unshare -m $net -p -f --kill-child --propagation private sh -c '
		set -e
		mount --bind "$1" "$1"
		mount --rbind /dev "$1/dev"
		cd "$1"
		mount -t proc proc proc
		mount -t sysfs sysfs sys
		mount -t tmpfs -o mode=1777 tmpfs tmp
		pivot_root . old
		umount -l /old
		shift
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/var/tmp LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive sh -euc "$@"' sh "$tree" "$@"
}

echo "== $suite: what the packages are built with"
cp /etc/resolv.conf "$tree/etc"
# What a mirror has may be a snapshot, past its date. The tests' own dependencies come along, since they
# run without network as well.
inside net '
	apt-get -qq -o Acquire::Check-Valid-Until=false update
	apt-get build-dep -qq -y --no-install-recommends /source
	apt-get install -qq -y --no-install-recommends lintian autopkgtest iproute2
	apt-get clean' >"$tree/log" 2>&1 || { tail -n 40 "$tree/log" >&2; exit 1; }
echo "== $suite: built by $(inside alone 'go version; dpkg-query -f "with libseccomp \${Version}" -W libseccomp-dev' | tr '\n' ' ')"
inside alone 'ARCHIVE=$(echo /source/aldente-*.tar.xz) /source/packaging/deb.sh /built' >"$tree/log" 2>&1 || { tail -n 40 "$tree/log" >&2; exit 1; }
mv "$tree/built" "$out"
mkdir "$tree/built"
cp "$out"/* "$tree/built"
echo "== $suite: $(inside alone 'lintian --version')"
inside alone 'lintian --allow-root --show-overrides --fail-on error,warning /built/*.changes'
echo "== $suite: autopkgtest"
# The tree is the container that a test asks for.
status=0
inside alone '
	ip link set lo up
	ip link add h0 type veth peer name o0
	ip addr add 192.0.2.2/24 dev h0
	ip link set h0 up
	ip link set o0 up
	ip route add default via 192.0.2.1
	autopkgtest -q --no-built-binaries --ignore-restrictions=isolation-container -o /var/tmp/results /built/*.deb /built/*.dsc -- null' >"$tree/log" 2>&1 || status=$?
cat "$tree/var/tmp/results/summary" || true
test "$status" = 0 || { tail -n 40 "$tree/log" >&2; exit 1; }
rm -rf "$tree"
echo "== $suite: all is well"
