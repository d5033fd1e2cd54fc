# SPDX-License-Identifier: Apache-2.0
# Read by run.sh and ../lsm/run.sh: kernels and file systems for virtual machines, made of Debian's packages
# below build/kernels. Nothing is installed on this system but what "needs" names.

repo=$(cd "$(dirname "$0")/../.." && pwd)
cache=$repo/build/kernels
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
	awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }')
mkdir -p "$cache"
PATH=$PATH:/usr/sbin:/sbin

# needs PACKAGE COMMAND...: ends where a command is missing.
needs() {
	package=$1
	shift
	for c; do
		command -v "$c" >/dev/null || { echo "$0: no $c: install the package $package" >&2; exit 1; }
	done
}

# apt_for SUITE ARCH: from here on "$apt" are options that have apt know that suite and
# architecture alone, and nothing as installed.
apt_for() {
	aptdir=$cache/apt/$1-$2
	mkdir -p "$aptdir/lists/partial" "$aptdir/archives/partial"
	: >"$aptdir/status"
	echo "deb [arch=$2] $mirror $1 main" >"$aptdir/sources.list"
	# A suite is old, or frozen: what it says of its age is not looked at; its signature is.
	apt="-qq -o Dir::Etc::SourceList=$aptdir/sources.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$aptdir/lists
		-o Dir::Cache=$aptdir -o Dir::Cache::archives=$aptdir/archives -o Dir::State::status=$aptdir/status -o APT::Architecture=$2 -o APT::Architectures=$2
		-o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
		-o APT::Sandbox::User=root -o APT::Install-Recommends=false"
	test -e "$aptdir/fetched" || { apt-get $apt update && touch "$aptdir/fetched"; }
}

# kernel SUITE ARCH: Debian's kernel for virtual machines; "$kernel" is its folder: vmlinuz, version, and
# modules.ext4, which has all of its modules, and initrd's.
kernel() {
	kernel=$cache/kernel-$1-$2
	test -e "$kernel/ready" && return
	rm -rf "$kernel"
	mkdir -p "$kernel/debs"
	apt_for "$1" "$2"
	image=$(apt-cache $apt depends "linux-image-cloud-$2" | grep -oE 'linux-image-[0-9][^ ]+' | head -n 1)
	# Since Debian 14 the kernel and its modules are packages of their own.
	parts=$(apt-cache $apt depends "$image" | grep -oE 'linux-(binary|modules)-[^ ]+' || true)
	(cd "$kernel/debs" && apt-get $apt download "$image" $parts)
	for deb in "$kernel"/debs/*.deb; do
		dpkg-deb -x "$deb" "$kernel/files"
	done
	cp "$(find "$kernel/files" -name 'vmlinuz*' -type f | head -n 1)" "$kernel/vmlinuz"
	dir=$(find "$kernel/files" -type d -path '*/modules/*/kernel' -prune | head -n 1)
	version=$(basename "$(dirname "$dir")")
	echo "$version" >"$kernel/version"
	mkdir -p "$kernel/tree/lib/modules"
	mv "$(dirname "$dir")" "$kernel/tree/lib/modules/"
	rm -f "$kernel/tree/lib/modules/$version"/build "$kernel/tree/lib/modules/$version"/source
	find "$kernel/tree" -name '*.ko.xz' -exec xz -d {} +
	depmod -b "$kernel/tree" "$version"
	filesystem "$kernel/tree/lib/modules" "$kernel/modules.ext4"
	rm -rf "$kernel/files" "$kernel/debs"
	touch "$kernel/ready"
}

# filesystem FOLDER FILE [MEGABYTES]: an ext4 file system of what is in a folder, and that much room.
filesystem() {
	size=$(($(du -sm "$1" | cut -f 1) * 5 / 4 + 16 + ${3:-0}))
	mke2fs -q -F -t ext4 -O ^has_journal -d "$1" "$2" "${size}M"
}

# tree SUITE ARCH NAME PACKAGE... -- PACKAGE...: "$tree" is a file system of what the packages, and those that they
# depend on, contain, and of the latter without these; none of their scripts runs, so that it can be any architecture's.
tree() {
	suite=$1 arch=$2
	# Other packages are another file system.
	part=$cache/root-$3-$arch-$(echo "$*" | cksum | cut -d ' ' -f 1)
	tree=$part.ext4
	shift 3
	test -e "$tree" && return
	rm -rf "$part" "$tree.part"
	mkdir -p "$part"
	apt_for "$suite" "$arch"
	apt-get $apt clean
	with=
	for p; do
		shift
		test "$p" != -- || break
		with="$with $p"
	done
	# shellcheck disable=SC2086
	apt-get $apt --download-only -y install base-files $with >/dev/null
	test $# = 0 || (cd "$aptdir/archives" && apt-get $apt download "$@")
	# base-files first: it has the links from /bin to /usr/bin.
	for deb in "$aptdir"/archives/base-files_*.deb "$aptdir"/archives/*.deb; do
		dpkg-deb -x "$deb" "$part"
	done
	printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\nuser:x:1000:1000::/home/user:/bin/sh\n' >"$part/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\nuser:x:1000:\n' >"$part/etc/group"
	printf 'user:100000:65536\n' | tee "$part/etc/subuid" >"$part/etc/subgid"
	printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$part/etc/nsswitch.conf"
	printf '127.0.0.1 localhost\n::1 localhost\n' >"$part/etc/hosts"
	: >"$part/etc/resolv.conf"
	mkdir -p "$part/repo" "$part/home/user"
	ln -sf dash "$part/usr/bin/sh"
	test ! -e "$part/usr/bin/nc.openbsd" || ln -sf nc.openbsd "$part/usr/bin/nc"
	rm -rf "$part"/usr/share/doc "$part"/usr/share/man "$part"/usr/share/locale
	test -z "${prepare:-}" || $prepare "$part"
	filesystem "$part" "$tree.part"
	rm -rf "$part"
	apt-get $apt clean
	mv "$tree.part" "$tree"
}

# initrd ARCH: "$initrd" for "$kernel": busybox, and the drivers of the disks.
initrd() {
	initrd=$kernel/initrd
	test -e "$initrd" && test "$initrd" -nt "$(dirname "$0")/../kernels/init" && return
	part=$kernel/initrd.part
	rm -rf "$part"
	mkdir -p "$part/bin" "$part/modules" "$part/dev" "$part/proc" "$part/sys" "$part/new" "$part/low" "$part/top"
	busybox=$cache/busybox-$1
	if ! test -e "$busybox"; then
		apt_for trixie "$1"
		mkdir -p "$cache/busybox.part"
		(cd "$cache/busybox.part" && apt-get $apt download busybox-static && dpkg-deb -x ./*.deb .)
		mv "$cache/busybox.part/usr/bin/busybox" "$busybox"
		rm -rf "$cache/busybox.part"
	fi
	cp "$busybox" "$part/bin/busybox"
	ln -s busybox "$part/bin/sh"
	cp "$repo/test/kernels/init" "$part/init"
	chmod 755 "$part/init"
	version=$(cat "$kernel/version")
	for m in virtio_pci virtio_mmio virtio_blk virtio_console ext4 crc32c_generic overlay; do
		modprobe -d "$kernel/tree" -S "$version" --show-depends "$m" 2>/dev/null || true
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$part/list"
	while read -r m; do
		cp "$m" "$part/modules/"
		basename "$m"
	done <"$part/list" >"$part/modules/order"
	rm "$part/list"
	(cd "$part" && find . | LC_ALL=C sort | "$(command -v busybox || echo "$busybox")" cpio -o -H newc 2>/dev/null) >"$initrd.new"
	rm -rf "$part"
	mv "$initrd.new" "$initrd"
}

# boot ARCH JOB OUTPUT SECONDS CMDLINE: runs job, a tar archive whose "job" is executed, on the machine of
# "$kernel", "$initrd" and "$tree". What it writes to its standard output is in OUTPUT, the console in OUTPUT.console.
boot() {
	while test -n "${WAIT_WHILE:-}" && test -e "$WAIT_WHILE"; do sleep 2; done
	case $1 in
	amd64) machine='qemu-system-x86_64 -machine q35 -cpu max,la57=off' console=ttyS0 ;;
	arm64) machine='qemu-system-aarch64 -machine virt -cpu cortex-a57' console=ttyAMA0 ;;
	esac
	rm -f "$3" "$3.console"
	# The machine's clock counts its instructions, and leaves out what it would wait for. How busy
	# this system is, or how slow, is nothing that a program's limits of time notice.
	# shellcheck disable=SC2086
	${BOOT_WITH:-} timeout "$4" $machine -accel tcg,thread=single,tb-size=512 ${CLOCK:--icount shift=3,sleep=off} ${QEMU_ARGS:-} -nodefaults -no-user-config -no-reboot -display none -smp 2 -m "${MEMORY:-1024}" \
		-kernel "$kernel/vmlinuz" -initrd "$initrd" -serial "file:$3.console" \
		-drive "if=none,id=root,format=raw,readonly=on,file=$tree" -device virtio-blk-pci,drive=root \
		-drive "if=none,id=modules,format=raw,readonly=on,file=$kernel/modules.ext4" -device virtio-blk-pci,drive=modules \
		-drive "if=none,id=job,format=raw,readonly=on,file=$2" -device virtio-blk-pci,drive=job \
		-device virtio-serial-pci -chardev "file,id=out,path=$3" -device virtserialport,chardev=out \
		-append "console=$console panic=-1 tsc=reliable mitigations=off $5"
}
