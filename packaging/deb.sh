#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the Debian packages of the commit, with Debian's own tools, of the source archive
# alone: build/deb has the source package and the packages. Debian: debhelper, libseccomp-dev,
# and Go as go.mod wants it, by the package golang-go or in PATH.
#
#	packaging/deb.sh DIR
#	ARCHIVE=FILE packaging/deb.sh DIR       of that source archive
set -eu
umask 022
mkdir -p "$1"
out=$(cd "$1" && pwd)
archive=$(readlink -f "${ARCHIVE:-/nowhere}")
cd "$(dirname "$0")/.."
command -v dpkg-buildpackage dh >/dev/null || { echo "$0: dpkg-dev or debhelper is not installed" >&2; exit 1; }
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

if ! test -e "$archive"; then
	SOURCE=only packaging/dist.sh "$work/dist"
	archive=$(echo "$work"/dist/aldente-*.tar.xz)
fi
# The archive says what it is: here there may be another commit by now.
tar -C "$work" -xf "$archive"
tree=$(echo "$work"/aldente-*)
release=$("$tree/packaging/version.sh")
read -r version commit seconds <<EOF
$release
EOF
# What comes before a release sorts before it, and by its time.
upstream=$version
case $version in
*-dev) upstream=${version%-dev}~dev$(date -u -d "@$seconds" +%Y%m%d%H%M%S) ;;
esac
cp "$archive" "$work/aldente_$upstream.orig.tar.xz"
cp -r "$tree/packaging/debian" "$tree/debian"
if test "$upstream" != "$version"; then
	{
		printf 'aldente (%s-1) UNRELEASED; urgency=medium\n\n  * Commit %s.\n\n' "$upstream" "$commit"
		printf ' -- aldente maintainers <maintainers@aldente.example>  %s\n\n' "$(LC_ALL=C date -u -R -d "@$seconds")"
		cat "$tree/packaging/debian/changelog"
	} >"$tree/debian/changelog"
fi
# A Go that no package has.
profile=
case $(dpkg-query -f '${Version}' -W golang-go 2>/dev/null) in
2:1.2[6-9]* | 2:1.[3-9][0-9]*) ;;
*) profile=-Ppkg.aldente.own-go ;;
esac
# What was compiled before need not be again: the compiler's cache knows what by.
export GOCACHE="$(go env GOCACHE)"
(cd "$tree" && dpkg-buildpackage -us -uc $profile)
mkdir -p "$out"
find "$work" -maxdepth 1 -type f -exec cp -t "$out" {} +
