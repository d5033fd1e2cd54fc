#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the RPM packages into an empty root, without a system around them: that rpm finds nothing
# missing, that the programs run there, each by its name, as what the package says, and that the removal
# leaves no file. Needs root and rpm.
#
#	test/packages/rpm.sh [DIR]        build/rpm if not said
set -eu
cd "${1:-$(dirname "$0")/../../build/rpm}/RPMS"
test "$(id -u)" = 0 || { echo "$0: needs root, to install into a root of its own" >&2; exit 1; }
fail() { echo "FAIL: $*" >&2; exit 1; }
root=$(mktemp -d)
# Where rpm is a stranger, as on Debian, it says so each time.
inside() { rpm --root "$root" --dbpath /var/lib/rpm "$@" 2>"$root.said" || { cat "$root.said" >&2; return 1; }; }
trap 'rm -rf "$root" "$root.said"' EXIT
inside --initdb
before=$(cd "$root" && find . ! -type d | sort)
inside -i "$(uname -m)"/aldente-[0-9]*.rpm noarch/aldente-passt-*.rpm noarch/aldente-slirp4netns-*.rpm
inside -V aldente aldente-passt aldente-slirp4netns || fail "what is there is not what the packages have"
test "$(stat -c '%a %u' "$root/usr/bin/aldente")" = '711 0' || fail "the program can be read"
for name in pasta passt pesto slirp4netns aldentectl; do
	chroot "$root" "/usr/bin/$name" --version | grep -q '(aldente)' || fail "$name is not there"
done
for name in passt slirp4netns; do
	test "$(inside -q --qf '%{NAME}' --whatprovides $name)" = aldente-$name || fail "nothing is in $name's place"
done
# Its own dependencies are a system's: whether there is a policy, and what loads it.
for rpm in noarch/aldente-selinux-*.rpm; do
	test -e "$rpm" || continue
	inside -i --nodeps --noscripts "$rpm"
	inside -V --nodeps aldente-selinux || fail "aldente-selinux is not what was packed"
	inside -e --noscripts aldente-selinux
done
inside -e aldente-passt aldente-slirp4netns aldente
after=$(cd "$root" && find . ! -type d | sort)
test "$before" = "$after" || { echo "$after" >&2; fail "the packages leave something behind"; }
echo "== RPM packages: all is well"
