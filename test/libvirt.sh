#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the tests with virtual machines under the newest QEMU, libvirt and DPDK,
# in a Debian unstable of its own below build/: libvirt that starts passt, QEMU
# that does, QEMU that connects again, and every shape of vhost-user's queues.
# Needs root, debootstrap and the network. Arguments go to the test binary, as
# -test.run Libvirt. ALDENTE_PASTA=/usr/bin/pasta has the original tested.
set -eu
cd "$(dirname "$0")/.."
repo=$PWD
root=$repo/build/sid

if ! test -e "$root/ready.3"; then
	command -v debootstrap >/dev/null || { echo "debootstrap is not installed" >&2; exit 1; }
	mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }')
	rm -rf "$root"
	# shellcheck disable=SC2086
	debootstrap --variant=minbase sid "$root" $mirror
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	unshare -m sh -c 'mount --bind /proc "$1/proc" && DEBIAN_FRONTEND=noninteractive chroot "$1" \
		apt-get install -qq -y --no-install-recommends qemu-system-x86 libvirt-daemon \
		libvirt-daemon-driver-qemu libvirt-clients busybox-static iproute2 ethtool iputils-ping \
		xz-utils curl python3 passt dpdk-dev' sh "$root"
	rm -rf "$root/var/cache/apt/archives"
	touch "$root/ready.3"
fi

# Compiled here: there is no Go in there.
CGO_ENABLED=0 go test -c -o build/qemu.test ./test/qemu
CGO_ENABLED=0 go build -ldflags '-s -w' -o build/guest ./test/qemu/guest

# A root, not only a changed one: from within the latter, nobody may make user
# namespaces.
exec unshare -m sh -c '
	root=$1 repo=$2
	shift 2
	mount --make-rprivate / && mount --bind "$root" "$root"
	for d in proc dev sys; do mount --rbind /$d "$root/$d"; done
	mount -t tmpfs tmpfs "$root/tmp"
	mkdir -p "$root/repo" "$root/old"
	mount --bind "$repo" "$root/repo"
	cd "$root" && pivot_root . old && umount -l /old
	cd /repo/test/qemu
	export HOME=/root PATH=/usr/bin:/usr/sbin:/bin:/sbin ALDENTE_TEST_GUEST=/repo/build/guest ALDENTE_VM=every
	exec /repo/build/qemu.test -test.v "$@"
' sh "$root" "$repo" "$@"
