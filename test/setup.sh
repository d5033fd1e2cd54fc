#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the clients that the end-to-end tests use where it can, and names what
# is missing where it cannot. Each line: command, Debian package. Before that it
# opens /dev/net/tun to all users.
set -eu

need='ip iproute2
tc iproute2
iperf3 iperf3
curl curl
dig bind9-dnsutils
ping iputils-ping
traceroute traceroute
tracepath iputils-tracepath
udhcpc udhcpc
dhclient isc-dhcp-client
dhcpcd dhcpcd-base
tcpdump tcpdump
nc netcat-openbsd
ethtool ethtool
unshare util-linux
setpriv util-linux
gcc gcc
git git
mandoc mandoc
musl-gcc musl-tools
python3 python3
qemu-system-x86_64 qemu-system-x86
busybox busybox-static'

PATH=$PATH:/usr/sbin:/sbin
missing() {
	echo "$need" | while read -r command package; do
		command -v "$command" >/dev/null || echo "$package"
	done | sort -u
	# The test that regenerates the seccomp filters.
	test -e /usr/include/seccomp.h || echo libseccomp-dev
}

# Distributions ship the clone device of taps open to all; some containers and
# minimal systems do not.
if test "$(id -u)" = 0 && test -c /dev/net/tun; then
	chmod 0666 /dev/net/tun
fi

packages=$(missing)
test -n "$packages" || exit 0
if test "$(id -u)" = 0 && command -v apt-get >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# shellcheck disable=SC2086
	apt-get install -qq -y --no-install-recommends $packages >/dev/null
	packages=$(missing)
fi
if test -n "$packages"; then
	echo "not installed, tests that use them will fail:" $packages >&2
fi
