#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What run.sh has a tree do: first "install", with the network, then "check", without it.
set -eu
export DEBIAN_FRONTEND=noninteractive HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
fail() { echo "FAIL: $*" >&2; exit 1; }
say() { echo "-- $*"; }

# listed is all files but those that change by themselves, or that belong to the test.
listed() {
	find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /debs -o -path /repo -o -path /tmp -o -path /run -o -path /home \
		-o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/log -o -path /root \) -prune -o -print | sort
}

install() {
	apt-get -qq -o Acquire::Check-Valid-Until=false update
	# 1. Into a system that has nothing of it: and out again.
	listed >/debs/before
	cp -a /var/lib/dpkg/statoverride /debs/statoverride 2>/dev/null || true
	getent passwd >/debs/users
	(cd /debs && apt-get install -qq -y ./aldente*.deb)
	# What comes later, and wants passt or slirp4netns, is content.
	apt-get -s install podman rootlesskit libvirt-daemon-system virt-manager >/debs/later
	grep -q '^Inst podman ' /debs/later || fail "podman cannot be installed beside ours"
	grep -E '^(Inst (passt|slirp4netns)|Remv aldente[^ ]*) ' /debs/later && fail "podman and the like do not take ours"
	dpkg -P aldente-passt aldente-slirp4netns aldente
	listed >/debs/after
	getent passwd | diff /debs/users - || fail "users stay behind"
	diff /debs/before /debs/after || fail "the packages leave something behind"
	test -z "$(dpkg -l 'aldente*' 2>/dev/null | grep '^[irp][^n]')" || fail "dpkg knows of aldente"
	# 2. In place of what a system has, whose dependants stay.
	apt-get install -qq -y --no-install-recommends podman passt slirp4netns crun catatonit uidmap netavark aardvark-dns nftables \
		rootlesskit busybox-static iproute2 curl procps util-linux \
		qemu-system-x86 libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients ethtool iputils-ping xz-utils
	(cd /debs && apt-get install -qq -y ./aldente*.deb)
	for gone in passt slirp4netns; do
		case $(dpkg-query -f '${Status}' -W $gone 2>/dev/null) in *" installed") fail "$gone is still there" ;; esac
	done
	for kept in podman rootlesskit libvirt-daemon-driver-qemu; do
		case $(dpkg-query -f '${Status}' -W $kept) in *" installed") ;; *) fail "$kept was removed" ;; esac
	done
	apt-get check -qq
	# The kernel that virtual machines of the test boot, where it looks for it.
	image=$(apt-cache depends linux-image-cloud-amd64 | grep -oE 'linux-image-[^ ]+-cloud-amd64$' | head -n 1)
	if ! test -e "/repo/build/qemu/$image"; then
		parts=$(apt-cache depends "$image" | grep -oE 'linux-(binary|modules)-[^ ]+' || true)
		mkdir -p /repo/build/qemu /debs/kernel
		# shellcheck disable=SC2086
		(cd /debs/kernel && apt-get -qq -o APT::Sandbox::User=root download "$image" $parts && for d in *.deb; do dpkg -x "$d" root; done && mv root "/repo/build/qemu/$image")
	fi
	useradd -m -u 1000 user
	for f in subuid subgid; do grep -q ^user: /etc/$f || echo user:100000:65536 >>/etc/$f; done
}

as_user() { setpriv --reuid=1000 --regid=1000 --init-groups env HOME=/home/user USER=user XDG_RUNTIME_DIR=/run/user/1000 "$@"; }

# until waits for a command to succeed.
until_ok() {
	for _ in $(seq 200); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	"$@" || fail "$*"
}

# wholly has each process of an instance, by what its program is.
ours() {
	until_ok pgrep -f "^$1"
	for pid in $(pgrep -f "^$1"); do
		case $(readlink "/proc/$pid/exe") in /usr/bin/aldente*) ;; *) fail "$1 is $(readlink "/proc/$pid/exe")" ;; esac
	done
}

# What there is to say to podman where there is no service manager.
rootless() { as_user podman --cgroup-manager cgroupfs --events-backend file --storage-driver vfs "$@"; }
# web is a container that answers at a port.
web() { rootless run -d --name "$1" --cgroups disabled --log-driver k8s-file -p "$2:80" localhost/web httpd -f -h /www -p 80 >/dev/null; }

podman_check() {
	say "$(podman --version), rootless, by what it finds"
	mkdir -p /tmp/image/bin /tmp/image/etc /tmp/image/www
	cp /usr/bin/busybox /tmp/image/bin/busybox
	for a in sh httpd wget ip; do ln -sf busybox /tmp/image/bin/$a; done
	echo from the container >/tmp/image/www/index.html
	tar -C /tmp/image -cf /tmp/image.tar .
	rootless info -f '{{.Host.Pasta.Executable}} {{.Host.Pasta.Version}}' | tr '\n' ' ' | grep -q '^/usr/bin/pasta pasta .*(aldente)' || fail "podman does not find ours"
	rootless import -c 'ENV PATH=/bin' /tmp/image.tar localhost/web >/dev/null
	web web 8080
	ours /usr/bin/pasta
	until_ok curl -fs http://192.0.2.2:8080/
	for at in 127.0.0.1 192.0.2.2 '[::1]' '[2001:db8:1::2]'; do
		test "$(curl -fsg --max-time 10 "http://$at:8080/")" = 'from the container' || fail "no answer at $at"
	done
	rootless exec web wget -q -O - http://192.0.2.1:8000/ | grep -q 'from outside' || fail "nothing outside is reached"
	rootless rm -f -t 0 web >/dev/null
	until_ok sh -c '! pgrep -f ^/usr/bin/pasta'
	case $(as_user podman run --help) in *slirp4netns*) ;; esac
}

rootlesskit_check() {
	say "$(rootlesskit --version)"
	for net in pasta:implicit slirp4netns:builtin; do
		test "${net%:*}" != slirp4netns || command -v slirp4netns >/dev/null
		as_user rootlesskit --net="${net%:*}" --port-driver="${net#*:}" --copy-up=/etc --disable-host-loopback \
			sh -c 'ip -4 -o address show scope global; curl -fs --max-time 10 http://192.0.2.1:8000/' | tee /tmp/rk
		grep -q 'from outside' /tmp/rk || fail "rootlesskit --net=${net%:*}"
	done
}

libvirt_check() {
	say "$(virsh --version), $(qemu-system-x86_64 --version | head -n 1)"
	cd /repo/test/qemu
	ALDENTE_PASTA=/usr/bin/pasta ALDENTE_TEST_GUEST=/repo/build/guest ALDENTE_VM=every /repo/build/qemu.test -test.v -test.timeout 20m -test.run '^TestLibvirt$' |
		tee /tmp/libvirt | grep -E '^ *(---|===|ok|PASS|FAIL)' || true
	grep -q '^PASS' /tmp/libvirt || { cat /tmp/libvirt; fail libvirt; }
	grep -q -- '--- SKIP: TestLibvirt ' /tmp/libvirt && { cat /tmp/libvirt; fail "the test of libvirt was left out"; }
	cd /
}

# older makes of the packages such as a release before would have had.
older() {
	mkdir -p /tmp/older
	for deb in /debs/aldente*.deb; do
		rm -rf /tmp/older/tree
		dpkg-deb -R "$deb" /tmp/older/tree
		sed -i -e 's/^Version: .*/Version: 0.0.1-1/' -e 's/aldente (>= [^)]*), aldente (<< [^)]*)/aldente (= 0.0.1-1)/' /tmp/older/tree/DEBIAN/control
		dpkg-deb -Znone -b /tmp/older/tree "/tmp/older/$(basename "$deb")" >/dev/null
	done
	rm -rf /tmp/older/tree
	dpkg -i /tmp/older/*.deb >/dev/null 2>&1
	test "$(dpkg-query -f '${Version}' -W aldente)" = 0.0.1-1 || fail "there is no older release"
}

# changes_check: an instance goes on as it is, and gets new workers, when the package is
# replaced by a newer one and when it is removed.
changes_check() {
	say "upgrade and removal with a guest"
	older
	as_user aldente --config-net --control none -- sleep 1000 &
	instance=$!
	until_ok pgrep -o -f '^aldente --config-net'
	broker=$(pgrep -o -f '^aldente --config-net')
	worker() { pgrep -x -P "$broker" aldente-worker; }
	until_ok worker
	until_ok pgrep -x -P "$broker" sleep
	guest=$(pgrep -x -P "$broker" sleep)
	reaches() { nsenter -t "$guest" -U -n --preserve-credentials curl -fs --max-time 5 http://192.0.2.1:8000/ | grep -q 'from outside'; }
	until_ok reaches
	web other 8081
	answers() { curl -fs --max-time 5 http://192.0.2.2:8081/ | grep -q 'from the container'; }
	until_ok answers
	for step in upgrade removal; do
		case $step in
		upgrade)
			dpkg -i /debs/aldente*.deb >/dev/null
			test "$(dpkg-query -f '${Version}' -W aldente aldente-passt aldente-slirp4netns | grep -c 0.0.1)" = 0 || fail "the upgrade is not one"
			;;
		removal) dpkg -P aldente-passt aldente-slirp4netns aldente >/dev/null 2>&1 || dpkg -P --force-depends aldente-passt aldente-slirp4netns aldente >/dev/null ;;
		esac
		until_ok reaches
		old=$(worker)
		kill -9 "$old"
		until_ok reaches
		test "$(worker)" != "$old" || fail "the worker was not replaced after the $step"
		until_ok answers
	done
	test ! -e /usr/bin/aldente && test ! -e /usr/bin/pasta || fail "the removal leaves programs"
	kill "$broker"
	wait "$instance" || true
	rootless rm -f -t 0 other >/dev/null
	until_ok sh -c "! test -e /proc/$broker"
	until_ok sh -c '! pgrep -f ^/usr/bin/pasta'
}

# outside makes a host of this namespace, and has something answer in another.
outside() {
	ip link set lo up
	ip netns add outside 2>/dev/null || { mkdir -p /run/netns; ip netns add outside; }
	ip link add h0 type veth peer name o0 netns outside
	ip addr add 192.0.2.2/24 dev h0
	ip addr add 2001:db8:1::2/64 dev h0 nodad
	ip link set h0 up
	ip -n outside link set lo up
	ip -n outside addr add 192.0.2.1/24 dev o0
	ip -n outside addr add 2001:db8:1::1/64 dev o0 nodad
	ip -n outside link set o0 up
	ip route add default via 192.0.2.1
	ip -6 route add default via 2001:db8:1::1
	mkdir -p /tmp/outside /run/user/1000
	chown 1000:1000 /run/user/1000
	echo from outside >/tmp/outside/index.html
	ip netns exec outside busybox httpd -h /tmp/outside -p 8000
	until_ok curl -fs http://192.0.2.1:8000/
	echo 127.0.0.1 localhost >/etc/hosts
	chmod 666 /dev/net/tun
}

autopkgtest_check() {
	say "what autopkgtest runs"
	for t in names connect; do
		sh "/repo/packaging/debian/tests/$t" || fail "the package's test $t"
	done
}

check() {
	outside
	autopkgtest_check
	podman_check
	rootlesskit_check
	libvirt_check
	changes_check
}

"$1"
