#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the tests with rootless Podman, RootlessKit, Docker and BuildKit, all the newest,
# in a Debian unstable of their own below build/. Needs root, debootstrap and the
# network, and 1.2 GB: that is why "make test" leaves these tests out.
#
# /next in there is what Debian unstable does not have yet: Podman and netavark of
# Debian experimental, RootlessKit and BuildKit from their own source. Tests of Podman 6 take
# these, and all tests do with ALDENTE_PODMAN=next.
#
#	test/podman/run.sh                       with bin/pasta
#	test/podman/run.sh -test.run Publish     arguments go to the test binary
#	ALDENTE_PASTA=DIR/pasta test/podman/run.sh   with the programs in DIR
#	ALDENTE_PASTA=original test/podman/run.sh    with Debian's pasta
#	ALDENTE_PODMAN=next test/podman/run.sh       all with the Podman of /next
set -eu
cd "$(dirname "$0")/../.."
repo=$PWD
root=$repo/build/podman
test "$(id -u)" = 0 || { echo "$0: needs root, to make the tree; Podman itself runs as another user" >&2; exit 1; }

# inside runs a program in the tree, with /proc.
inside() {
	unshare -m sh -c 'mount --bind /proc "$1/proc" && shift && DEBIAN_FRONTEND=noninteractive chroot "$@"' sh "$root" "$root" "$@"
}
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
	awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }')

if ! test -e "$root/ready"; then
	command -v debootstrap >/dev/null || { echo "$0: debootstrap is not installed" >&2; exit 1; }
	rm -rf "$root"
	mkdir -p "$root"
	# shellcheck disable=SC2086
	debootstrap --variant=minbase sid "$root" $mirror
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	inside apt-get install -qq -y --no-install-recommends podman buildah crun netavark aardvark-dns nftables passt \
		uidmap catatonit rootlesskit busybox-static iproute2
	chroot "$root" useradd -m -u 1000 podman
	grep -q ^podman: "$root/etc/subuid" || for f in subuid subgid; do echo podman:100000:65536 >>"$root/etc/$f"; done
	mkdir -p "$root/repo" "$root/old" "$root/under-test"
	rm -rf "$root/var/cache/apt/archives" "$root/var/lib/apt/lists"
	echo 127.0.0.1 localhost >"$root/etc/hosts"
	touch "$root/ready"
fi

# A mirror may be a snapshot, whose index is past its date.
echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/snapshot"

# A tree that was made before may lack it.
if ! test -e "$root/usr/bin/docker"; then
	inside sh -c 'apt-get -qq update && apt-get install -qq -y --no-install-recommends docker.io docker-cli docker-buildx iptables slirp4netns'
	rm -rf "$root/var/cache/apt/archives" "$root/var/lib/apt/lists"
fi

if ! test -e "$root/next/ready"; then
	rm -rf "$root/next"
	mkdir -p "$root/next/usr/bin"
	# The tree's own index may be gone: the folder of lists is one for this alone.
	echo "deb ${mirror:?apt knows of no mirror of Debian} experimental main" >"$root/next/sources.list"
	inside sh -c 'cd /next && set -- -qq -o Dir::Etc::SourceList=/next/sources.list \
			-o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root &&
		apt-get "$@" update && apt-get "$@" download podman/experimental netavark/experimental &&
		for deb in *.deb; do dpkg-deb -x "$deb" /next || exit; done && rm -rf -- *.deb /var/lib/apt/lists'
	# It is a program of its own: nothing of it becomes part of this module.
	GOFLAGS='' CGO_ENABLED=0 GOBIN="$root/next/usr/bin" go install \
		github.com/rootless-containers/rootlesskit/v3/cmd/rootlesskit@latest \
		github.com/rootless-containers/rootlesskit/v3/cmd/rootlessctl@latest
	touch "$root/next/ready"
fi

# Its module excludes versions of others, and so cannot be installed as it is.
if ! test -e "$root/next/usr/bin/buildkitd"; then
	(
		mkdir -p "$root/next/buildkit" && cd "$root/next/buildkit"
		echo module buildkit >go.mod
		GOFLAGS='' go get github.com/moby/buildkit/cmd/buildkitd@latest github.com/moby/buildkit/cmd/buildctl@latest
		GOFLAGS='' CGO_ENABLED=0 go build -o "$root/next/usr/bin/" github.com/moby/buildkit/cmd/buildkitd github.com/moby/buildkit/cmd/buildctl
	)
fi

# Compiled here: there is no Go in there.
CGO_ENABLED=0 go test -c -o build/podman.test ./test/podman
CGO_ENABLED=0 go test -c -o build/e2e.test ./test

pasta=${ALDENTE_PASTA:-}
under_test=$repo/bin
case $pasta in
original) pasta=/usr/bin/pasta ;;
?*)
	under_test=$(cd "$(dirname "$pasta")" && pwd)
	pasta=/under-test/pasta
	;;
esac

# A root, not only a changed one: from within the latter, nobody may make user
# namespaces. Process numbers of its own: what the tests leave behind ends with
# them. The first process is a shell, which buries orphans, as Go would not.
# A network namespace of its own: nothing here reaches the real network.
#
# proc and sysfs are mounted anew and bare: the kernel lets a container mount
# its own only where they are wholly visible. crun wants cgroup2, also where the
# machine mounts version 1; it goes without limits, having nothing delegated.
exec env ALDENTE_PASTA="$pasta" ALDENTE_TEST_PODMAN=1 \
	unshare -m -n -p -f --kill-child --propagation private sh -c '
	set -e
	root=$1 repo=$2 under_test=$3
	shift 3
	mount --bind "$root" "$root"
	mount --rbind /dev "$root/dev"
	mount --bind "$repo" "$root/repo"
	mount --bind "$under_test" "$root/under-test"
	cd "$root"
	mount -t proc proc proc
	mount -t sysfs sysfs sys
	mount -t cgroup2 cgroup2 sys/fs/cgroup
	for d in tmp run var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $d; done
	pivot_root . old
	umount -l /old
	mount --make-rshared / # Podman warns otherwise
	# The remote of the tests has a resolver there.
	echo nameserver 198.51.100.9 >/run/resolv.conf
	mount --bind /run/resolv.conf /etc/resolv.conf
	cd /repo/test/podman
	export HOME=/root PATH=/usr/bin:/usr/sbin:/bin:/sbin
	/repo/build/podman.test -test.v -test.timeout 10m "$@"
' sh "$root" "$repo" "$under_test" "$@"
