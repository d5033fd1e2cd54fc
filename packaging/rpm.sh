#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the RPM packages of the commit, of the source archive alone. Where rpmbuild is a
# stranger, as on Debian, nothing is known of the packages that the spec needs: then what is
# there has to do, and the SELinux module is built if its Makefile is there.
#
#	packaging/rpm.sh DIR
set -eu
umask 022
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
command -v rpmbuild >/dev/null || { echo "$0: rpmbuild is not installed" >&2; exit 1; }
release=$(packaging/version.sh)
read -r version _ seconds <<EOF
$release
EOF
export SOURCE_DATE_EPOCH="$seconds"
SOURCE=only packaging/dist.sh "$out/source"
set --
rpm -q golang >/dev/null 2>&1 || set -- --nodeps
test -e /usr/share/selinux/devel/Makefile || set -- "$@" --without selinux
# What was compiled before need not be again: the compiler's cache knows what by.
export GOCACHE="${GOCACHE:-$(go env GOCACHE)}"
rpmbuild -ba "$@" --define "release_of $version" --define "_sourcedir $out/source" --define "_topdir $out" \
	--define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' --define '_buildhost localhost' \
	packaging/rpm/aldente.spec

if command -v rpmlint >/dev/null; then
	find "$out/RPMS" "$out/SRPMS" -name '*.rpm' -exec rpmlint -r packaging/rpm/aldente.rpmlintrc packaging/rpm/aldente.spec {} + >"$out/rpmlint" 2>&1 || true
	cat "$out/rpmlint"
	grep -q '; 0 errors, 0 warnings' "$out/rpmlint"
fi
