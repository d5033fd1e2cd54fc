# SPDX-License-Identifier: Apache-2.0
# Read by run.sh: a file system with Debian's SELinux policy, and our module in it. Root: it
# runs the policy's own tools in there, and writes the labels.

selinux_packages='selinux-policy-default selinux-policy-dev policycoreutils policycoreutils-dev selinux-utils semodule-utils checkpolicy make m4 python3 bzip2 gawk'

# selinux_tree SUITE ARCH PACKAGE...: "$tree", with the module as it is now.
selinux_tree() {
	test "$(id -u)" = 0 || { echo "$0: needs root, for SELinux's labels" >&2; exit 1; }
	suite=$1 arch=$2
	shift 2
	base=$cache/selinux-$suite-$arch
	if ! test -e "$base/ready"; then
		rm -rf "$base"
		prepare=keep
		# shellcheck disable=SC2086
		tree "$suite" "$arch" selinux "$@" $selinux_packages
		prepare=
		rm -f "$tree"
		in_tree 'ln -sf gawk /usr/bin/awk; ldconfig; cd /usr/share/selinux/default; semodule -s default -n -X 100 -i *.pp.bz2'
		touch "$base/ready"
	fi
	tree=$base.ext4
	if ! test -e "$tree" || test -n "$(find packaging/selinux -newer "$tree")"; then
		rm -rf "$base/tmp/aldente"
		cp -r packaging/selinux "$base/tmp/aldente"
		in_tree 'cd /tmp/aldente; make -s -f /usr/share/selinux/devel/Makefile NAME=default aldente.pp; semodule -s default -n -X 400 -i aldente.pp
			rm -rf /tmp/aldente; setfiles -F /etc/selinux/default/contexts/files/file_contexts /'
		filesystem "$base" "$tree"
	fi
}

# keep FOLDER: a file system that is made is kept as a folder, too.
keep() {
	mv "$1" "$base"
	mkdir "$1"
	mkdir -p "$base/tmp"
	printf 'SELINUX=enforcing\nSELINUXTYPE=default\n' >"$base/etc/selinux/config"
}

in_tree() { unshare -m sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C sh -ec "$2"' sh "$base" "$1"; }
