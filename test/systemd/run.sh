#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Boots a Debian with systemd, as a virtual machine, and starts the units of packaging/systemd in
# it as the package ships them: readiness, sockets, users, what the journal has. Needs root,
# debootstrap, QEMU, the network for the tree, and 3 GB below build/systemd.
#
#	test/systemd/run.sh [SUITE]          trixie if not said
#	DEBS=FOLDER test/systemd/run.sh      with the packages in there, not of "make deb"
#	BOOT=container test/systemd/run.sh   not a machine but namespaces: sooner, and of this kernel
set -eu
cd "$(dirname "$0")/../.."
test "$(id -u)" = 0 || { echo "$0: needs root, to make the tree" >&2; exit 1; }
for tool in qemu-system-x86_64 mke2fs; do
	test "${BOOT:-}" != container || break
	command -v $tool >/dev/null || { echo "$0: $tool is not installed" >&2; exit 1; }
done
suite=${1:-trixie}
debs=${DEBS:-}
if test -z "$debs"; then
	debs=build/deb
	rm -rf "$debs"
	packaging/deb.sh "$debs"
fi
base=$(test/packages/base.sh "$suite")
out=$PWD/build/systemd/$suite
tree=$out/tree
mkdir -p "$out"

# 1. The tree, which is the same for any packages of ours.
if ! test -e "$out/ready"; then
	rm -rf "$tree"
	cp -a "$base" "$tree"
	# What a mirror has may be a snapshot, past its date.
	unshare -m sh -c 'mount --make-rprivate / && mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && exec chroot "$1" sh -c "
		export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
		apt-get -qq -o Acquire::Check-Valid-Until=false update
		apt-get install -qq -y --no-install-recommends linux-image-cloud-amd64 initramfs-tools zstd systemd-sysv dbus dbus-user-session \
			libpam-systemd iproute2 curl busybox-static python3-minimal procps util-linux
		apt-get clean"' sh "$tree"
	rm -f "$tree/usr/sbin/policy-rc.d"
	chroot "$tree" useradd -m -u 1000 -s /bin/sh user
	mkdir -p "$tree/var/lib/systemd/linger"
	touch "$tree/var/lib/systemd/linger/user"
	# Nobody looks at the screen, and the clock is the machine's.
	for unit in getty@tty1.service serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer; do
		ln -sf /dev/null "$tree/etc/systemd/system/$unit"
	done
	echo aldente-test >"$tree/etc/hostname"
	touch "$out/ready"
fi

# 2. The packages, and what is to be done at the start.
mkdir -p "$tree/debs"
rm -f "$tree"/debs/*.deb
cp "$debs"/*.deb "$tree/debs"
cp test/systemd/inside.sh test/systemd/guest.py "$tree/debs"
unshare -m sh -c 'mount --make-rprivate / && mount --bind /proc "$1/proc" && DEBIAN_FRONTEND=noninteractive exec chroot "$1" sh -c "
	dpkg -P aldente-passt aldente-slirp4netns aldente >/dev/null 2>&1 || true
	rm -rf /etc/aldente /etc/systemd/*/aldente* /home/user/.config /var/log/journal
	exec dpkg -i /debs/aldente*.deb"' sh "$tree" >/dev/null
result=/dev/ttyS1
test "${BOOT:-}" != container || result=/run/result
cat >"$tree/etc/systemd/system/check.service" <<-EOF
	[Unit]
	After=multi-user.target
	[Service]
	Type=oneshot
	ExecStart=/bin/sh /debs/inside.sh
	StandardOutput=append:$result
	ExecStopPost=/usr/bin/systemctl poweroff --force --force
EOF
mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
ln -sf ../check.service "$tree/etc/systemd/system/multi-user.target.wants/check.service"

# 3. The machine, or namespaces of this one with systemd as their first process.
rm -f "$out/disk" "$out/result"
if test "${BOOT:-}" = container; then
	truncate -s 0 "$out/result"
	timeout -s KILL 300 unshare -m -n -p -C -u -i -f --kill-child --propagation private sh -c '
		set -e
		tree=$1 result=$2
		mount --bind "$tree" "$tree"
		mkdir -p "$tree/old" && cd "$tree"
		mount --rbind /dev dev && mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
		mount -t tmpfs tmpfs dev/shm
		mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup
		for d in tmp run var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $d; done
		touch run/result && mount --bind "$result" run/result
		pivot_root . old && umount -l /old
		mount --make-rshared /
		exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=null --show-status=no
	' sh "$tree" "$out/result" >"$out/console" 2>&1 || true
else
	truncate -s 3G "$out/disk"
	mke2fs -q -t ext4 -d "$tree" "$out/disk"
	kernel=$(ls "$tree"/boot/vmlinuz-* | sort -V | tail -n 1)
	timeout 1200 qemu-system-x86_64 -machine q35 -accel tcg -cpu max -m 1024 -smp 2 -nodefaults -display none -no-reboot \
		-drive "file=$out/disk,format=raw,if=virtio,cache=unsafe" \
		-serial "file:$out/console" -serial "file:$out/result" \
		-kernel "$kernel" -initrd "$tree/boot/initrd.img-${kernel##*/vmlinuz-}" \
		-append "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=no" || true
	rm -f "$out/disk"
fi
tr -d '\r' <"$out/result"
grep -q '^all is well' "$out/result" || { echo "== $suite: FAIL: the console is in $out/console" >&2; exit 1; }
echo "== $suite: all is well"
