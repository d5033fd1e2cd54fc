#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes what a release consists of, in a folder: the commit's source with the modules
# that it is built of, static programs for each architecture, a bill of materials for
# each, checksums, and a statement of provenance. docs/releasing.md says what is what.
#
# Each file is a function of the commit, the Go release and the tools that pack: neither
# the folder nor the user, the clock, the locale or the mask shows.
#
#	packaging/dist.sh DIR
#	ARCHES=amd64 packaging/dist.sh DIR    not all of them
#	SBOM=none packaging/dist.sh DIR       without bills of materials
#	SOURCE=only packaging/dist.sh DIR     the source alone
set -eu
umask 022
export LC_ALL=C TZ=UTC
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
GO=${GO:-go}
sbom=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

release=$(packaging/version.sh)
read -r version commit seconds <<EOF
$release
EOF
case $commit in
unknown) echo "$0: this is neither a repository nor a source archive: an archive is of a commit" >&2; exit 1 ;;
*-dirty) echo "$0: there are changes that are not committed: an archive is of a commit" >&2; exit 1 ;;
esac
export SOURCE_DATE_EPOCH="$seconds"
arches=${ARCHES:-$(ls policy/filters/names_*.txt | sed 's/.*names_\(.*\)\.txt/\1/')}
work=$(mktemp -d)
# Modules are kept read-only.
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

# pack writes a folder of $work to an archive, without what the file system says of times
# and users.
pack() {
	tar -C "$work" --sort=name --format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
		--mtime="@$seconds" --owner=0 --group=0 --numeric-owner -cf - "$1" | xz -6 -T1 >"$out/$1.tar.xz"
}
# plain has the modes be the same everywhere.
plain() {
	find "$1" -type d -exec chmod 755 {} +
	find "$1" -type f -perm -100 -exec chmod 755 {} +
	find "$1" -type f ! -perm -100 -exec chmod 644 {} +
}

# 1. The source.
name=aldente-$version
src=$work/$name
if test -e .git; then
	git archive --prefix="$name/" HEAD | tar -C "$work" -xf -
	echo "$version $commit $seconds" >"$src/VERSION"
	(cd "$src" && GOFLAGS='' GOWORK=off $GO mod vendor)
else
	mkdir "$src"
	tar -cf - --exclude=./bin --exclude=./build --exclude=./debian . | tar -C "$src" -xf -
fi
plain "$src"
pack "$name"
if test "${SOURCE:-}" = only; then
	exit
fi

# 2. The programs, built of nothing but that, and what writes their bills of materials: fetched and
# compiled once, for whoever runs it by its version asks the network each time.
if test "${SBOM:-}" != none; then
	for again in again again ''; do
		GOBIN="$work/tools" GOFLAGS=-trimpath GOWORK=off $GO install "$sbom" && break
		test -n "$again" || { echo "$0: $sbom cannot be had: SBOM=none makes the archives without" >&2; exit 1; }
		sleep 5
	done
fi
for arch in $arches; do
	static=$name-linux-$arch
	doc=$work/$static/share/doc/aldente
	env -i PATH="$PATH" HOME="$work" GOCACHE="$($GO env GOCACHE)" GOPATH="$work/path" LC_ALL=C TZ=UTC \
		GOOS=linux GOARCH="$arch" GOENV=off GOFLAGS=-mod=vendor GOPROXY=off GOTOOLCHAIN=local GOWORK=off \
		make -C "$src" -s install GO="$GO" DESTDIR="$work/$static.root" PREFIX=/usr/local
	mv "$work/$static.root/usr/local" "$work/$static"
	mkdir -p "$doc/examples"
	cp "$src/README.md" "$src/SECURITY.md" "$src/CHANGELOG.md" "$src/LICENSE" "$doc"
	cp -r "$src/packaging/apparmor" "$src/packaging/selinux" "$src/packaging/systemd" "$src/packaging/prometheus" "$src/packaging/grafana" "$doc/examples"
	(cd "$src/vendor" && find . -type f \( -iname 'LICENSE*' -o -iname 'COPYING*' -o -iname 'NOTICE*' \) ! -name '*.go' \
		-exec cp --parents -t "$(mkdir -p "$doc/licenses" && echo "$doc/licenses")" {} +)
	if test "${SBOM:-}" != none; then
		for program in bin/aldente bin/aldentectl libexec/aldente/aldente-worker libexec/aldente/aldente-names; do
			"$work/tools/cyclonedx-gomod" bin -json -noserial -notimestamp -std -version "$version" \
				-output "$doc/$(basename "$program").cdx.json" "$work/$static/$program"
		done
	fi
	plain "$doc"
	pack "$static"
	rm -rf "${work:?}/$static" "$src/bin"
done

# 3. What proves them.
cd "$out"
files=$(for f in "$name.tar.xz" $(for a in $arches; do echo "$name-linux-$a.tar.xz"; done); do echo "$f"; done)
# shellcheck disable=SC2086
sha256sum $files >SHA256SUMS
{
	printf '{"_type":"https://in-toto.io/Statement/v1","subject":['
	comma=
	while read -r digest file; do
		printf '%s{"name":"%s","digest":{"sha256":"%s"}}' "$comma" "$file" "$digest"
		comma=,
	done <SHA256SUMS
	printf '],"predicateType":"https://slsa.dev/provenance/v1","predicate":{"buildDefinition":{"buildType":"urn:aldente:make-dist:1",'
	printf '"externalParameters":{"version":"%s"},' "$version"
	printf '"internalParameters":{"go":"%s","xz":"%s","tar":"%s"},' "$($GO env GOVERSION)" "$(xz --version | sed -n '1s/.* //p')" "$(tar --version | sed -n '1s/.* //p')"
	printf '"resolvedDependencies":[{"name":"source","digest":{"gitCommit":"%s"}}]},' "$commit"
	printf '"runDetails":{"builder":{"id":"urn:aldente:maintainer"}}}}\n'
} >"$name.provenance.json"
