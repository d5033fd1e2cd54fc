#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Breaks the code in the ways that test/mutants.txt lists, one at a time, in a
# copy of the tree, and runs the tests that have to notice. RUN, if given,
# selects mutants by a pattern for the whole line: "udp/", "FuzzTCP".
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
export CGO_ENABLED=0
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$copy" 2>/dev/null || true
cp test/mutants.txt "$copy/mutants"
total=0 failed=0
# Who has to notice has to pass first, with the code as it is.
sound=' '
notices() {
	case $1 in
	Fuzz* | Test*) flags="-timeout 60s -run ^$1\$ ./$(dirname "$file")" ;;
	lane) flags='-timeout 40s ./worker/lane -worlds 150' ;;
	*) flags="-timeout 40s ./worker/$1" ;;
	esac
	# shellcheck disable=SC2086
	! (cd "$copy" && $GO test -count=1 $flags </dev/null >"$copy/out" 2>&1)
}
mutant() {
	file=$1 func=$2 edit=$3 noticing=$4
	test ! -e "$copy/worker/$file" || file=worker/$file
	for p in $noticing; do
		case $sound in *" $p "*) continue ;; esac
		if notices "$p"; then
			echo "$p: the code as it is does not pass."
			sed 20q "$copy/out"
			exit 1
		fi
		sound="$sound$p "
	done
	cp "$copy/$file" "$copy/whole"
	# The function's lines: from its head to the brace in the first column, or the
	# one line that it is.
	sed "/^func.* *$func(.*}\$/ $edit;/^func.* *$func(.*{\$/,/^}/ $edit" "$copy/whole" >"$copy/$file"
	if cmp -s "$copy/whole" "$copy/$file"; then
		echo "DOES NOT APPLY  $file $func: $edit"
		failed=$((failed + 1))
		return
	fi
	for p in $noticing; do
		total=$((total + 1))
		if ! notices "$p"; then
			echo "LIVES           $file $func: $edit ($p)"
			failed=$((failed + 1))
		elif grep -q 'build failed' "$copy/out"; then
			echo "DOES NOT BUILD  $file $func: $edit"
			sed 5q "$copy/out"
			failed=$((failed + 1))
		elif grep -q 'test timed out' "$copy/out"; then
			echo "hangs $p	$file $func: $edit"
		else
			echo "killed by $p	$file $func: $edit"
		fi
	done
	cp "$copy/whole" "$copy/$file"
}
while IFS='@' read -r file func edit noticing; do
	case $file in
	'##'*) echo "== ${file#\#\# }" ;;
	'' | '#'*) ;;
	*) case "$file $func $edit $noticing" in *${RUN:-}*) mutant "$file" "$func" "$edit" "$noticing" ;; esac ;;
	esac
done <"$copy/mutants"
echo "$((total - failed)) of $total noticed"
test "$failed" = 0
