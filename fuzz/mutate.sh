#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Breaks the code in the ways that mutants.txt lists, one at a time, in a copy of
# the tree, and runs the seeds of the fuzz target that has to notice, without
# fuzzing. A break that does not apply any more is an error: the list follows the
# code.
#
#	fuzz/mutate.sh [PATTERN]
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
export CGO_ENABLED=0
root=$PWD
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$copy" 2>/dev/null || true
total=0
failed=0
grep -v '^#' fuzz/mutants.txt | grep -e "${1:-.}" >"$copy/list"
while IFS='@' read -r file func edit target; do
	total=$((total + 1))
	# The function's lines: from its head to the brace in the first column, or
	# the one line that it is.
	sed "/^func.* *$func(.*}\$/ $edit;/^func.* *$func(.*{\$/,/^}/ $edit" "$root/$file" >"$copy/$file"
	if cmp -s "$root/$file" "$copy/$file"; then
		verdict="DOES NOT APPLY"
	elif (cd "$copy" && "$GO" test -count=1 -timeout 60s -run "^$target\$" "./$(dirname "$file")" </dev/null >out 2>&1); then
		verdict="LIVES"
	elif grep -q 'build failed' "$copy/out"; then
		verdict="DOES NOT BUILD"
		sed 5q "$copy/out"
	else
		verdict=
		echo "noticed by $target: $file $func: $edit"
	fi
	if test -n "$verdict"; then
		echo "$verdict: $file $func: $edit ($target)"
		failed=$((failed + 1))
	fi
	cp "$root/$file" "$copy/$file"
done <"$copy/list"
echo "$((total - failed)) of $total noticed"
test "$failed" = 0
