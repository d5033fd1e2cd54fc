#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints what this tree is: the version, the commit ("unknown" where nobody can know)
# and the time of the commit in seconds, in one line.
#
# In a repository the version is that of the tag vX.Y.Z on the commit; without one it
# is the one that VERSION has, which is the next to come, with "-dev". A source archive
# has no repository, and all three in VERSION.
set -eu
cd "$(dirname "$0")/.."
read -r version commit seconds <VERSION || test -n "$version"

if test -z "$commit"; then
	release=$version version=$version-dev commit=unknown seconds=0
	# Not that of a repository somewhere above.
	if test -e .git && head=$(git rev-parse HEAD 2>/dev/null); then
		commit=$head
		seconds=$(git log -1 --format=%ct)
		if tag=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null); then
			version=${tag#v}
			test "$version" = "$release" || { echo "$0: the tag is $tag, and VERSION has $release: make them one" >&2; exit 1; }
		fi
		git diff --quiet HEAD -- 2>/dev/null || commit=$commit-dirty version=$release-dev
	fi
fi
echo "$version" "$commit" "$seconds"
