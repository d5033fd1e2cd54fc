#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Breaks the code in the ways that test/mutants.txt lists, one at a time, in a
# copy of the tree, and runs the tests that have to notice. RUN, if given,
# selects mutants by a pattern.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
export CGO_ENABLED=0
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$copy" 2>/dev/null || true
cp test/mutants.txt "$copy/mutants"
total=0 failed=0
if ! (cd "$copy/worker" && $GO test -count=1 ./packet ./flow ./store ./link ./tcp ./udp ./icmp ./bypass ./lane </dev/null); then
	echo 'The code as it is does not pass.'
	exit 1
fi
mutant() {
	file=$1 func=$2 edit=$3 packages=$4
	cp "$copy/worker/$file" "$copy/whole"
	# The function's lines: from its head to the brace in the first column.
	sed "/^func.* *$func(/,/^}/ $edit" "$copy/whole" >"$copy/worker/$file"
	if cmp -s "$copy/whole" "$copy/worker/$file"; then
		echo "DOES NOT APPLY  $file $func: $edit"
		failed=$((failed + 1))
		return
	fi
	for p in $packages; do
		total=$((total + 1))
		flags=''
		test "$p" != lane || flags='-worlds 150'
		if (cd "$copy" && $GO test -count=1 -timeout 40s "./worker/$p" $flags </dev/null >"$copy/out" 2>&1); then
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
	cp "$copy/whole" "$copy/worker/$file"
}
while IFS='@' read -r file func edit packages; do
	case $file in
	'##'*) echo "== ${file#\#\# }" ;;
	'' | '#'*) ;;
	*) case "$file $func $edit" in *${RUN:-}*) mutant "$file" "$func" "$edit" "$packages" ;; esac ;;
	esac
done <"$copy/mutants"
echo "$((total - failed)) of $total noticed"
test "$failed" = 0
