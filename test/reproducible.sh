#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the archives and the Debian packages of the commit twice: the second time of the source
# archive of the first, in a longer path, by another user with a home and caches of their own,
# without network, with another time zone, locale, mask and, where faketime is installed, a clock
# that is years ahead. Every file has to be the same, bit for bit. Needs root.
#
#	test/reproducible.sh
#	DEB=none test/reproducible.sh        without the packages
#	ARCHES=amd64 test/reproducible.sh    of not all architectures
set -eu
cd "$(dirname "$0")/.."
test "$(id -u)" = 0 || { echo "$0: needs root, to build as another user" >&2; exit 1; }
GO=${GO:-go}
release=$(packaging/version.sh)
version=${release%% *}
first=build/reproducible
rm -rf "$first"
GO="$GO" packaging/dist.sh "$first"
test "${DEB:-}" = none || ARCHIVE="$first/aldente-$version.tar.xz" packaging/deb.sh "$first/deb"

other=$(mktemp -d)
trap 'chmod -R u+w "$other"; rm -rf "$other"' EXIT
chmod 755 "$other"
there=$other/a/longer/path/that/must/not/show
mkdir -p "$there" "$other/home"
tar -C "$there" -xf "$first/aldente-$version.tar.xz"
# Bills of materials are made by a program that is fetched: with the modules that are there.
modules=$($GO env GOMODCACHE)
chown -R 65534:65534 "$other"
clock=
if command -v faketime >/dev/null; then clock='faketime -f +900d'; fi
# Modules are read where they are, which root's home may hide: copied, if so.
again() {
	# shellcheck disable=SC2086
	unshare -n setpriv --reuid=65534 --regid=65534 --clear-groups env -i PATH="$PATH" HOME="$other/home" TZ=Pacific/Auckland LANG=C.UTF-8 \
		GO="$GO" GOFLAGS=-mod=mod GOPROXY="file://$other/proxy" GONOSUMDB='*' GONOSUMCHECK=1 GOSUMDB=off SBOM="${SBOM:-}" ARCHES="${ARCHES:-}" \
		ARCHIVE="${ARCHIVE:-}" sh -c 'umask 077; exec "$@"' sh $clock "$@"
}
cp -r "$modules/cache/download" "$other/proxy"
chown -R 65534:65534 "$other/proxy"
again "$there/aldente-$version/packaging/dist.sh" "$other/home/dist"
test "${DEB:-}" = none || ARCHIVE="$other/home/dist/aldente-$version.tar.xz" again "$there/aldente-$version/packaging/deb.sh" "$other/home/dist/deb"

differ=0
for f in "$first"/* "$first"/deb/*.deb "$first"/deb/*.orig.tar.xz "$first"/deb/*.debian.tar.xz; do
	test -f "$f" || continue
	if cmp "$f" "$other/home/dist/${f#"$first"/}"; then
		echo "the same: ${f##*/}"
		continue
	fi
	differ=1
	if command -v diffoscope >/dev/null; then
		diffoscope --max-report-size 20000 "$f" "$other/home/dist/${f#"$first"/}" || true
	fi
done
exit $differ
