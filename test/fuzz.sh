#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs each target of fuzz/targets.txt for the time given, one after the other.
# What is found is kept in the build cache; what fails, in testdata/fuzz.
#
#	test/fuzz.sh TIME [PATTERN]    PATTERN selects targets, a regular expression
#
# PARALLEL is the number of processes for a target, GO the go command.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
time=${1:-10s}
pattern=${2:-.}
cache=$("$GO" env GOCACHE)/fuzz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0

fuzz() { # TIME
	(cd "$package" && "$work/fuzz.test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$1" \
		-test.fuzzminimizetime 20x -test.parallel "${PARALLEL:-$(nproc)}" \
		-test.fuzzcachedir "$cache/aldente/$package") </dev/null >"$work/out" 2>&1
}

# late tells whether the coordinator took the end of the time for a failure of
# the target, as it does where the seeds alone take as long: that names no input,
# and counts only if it comes again in a time that is enough for them.
late() { grep -q 'context deadline exceeded' "$work/out" && ! grep -q 'Failing input' "$work/out"; }

count=0
failed=
last=
grep -v '^#' fuzz/targets.txt | grep -E "$pattern" >"$work/targets" || { echo "no target matches $pattern" >&2; exit 2; }
while read -r package target _; do
	if test "$package" != "$last"; then
		# Built once for all targets of a package.
		"$GO" test -c -fuzz=Fuzz -o "$work/fuzz.test" "./$package"
		last=$package
	fi
	echo "== $package $target"
	# A count of runs, because the time that it takes to make one input small
	# may exceed the time for all.
	if fuzz "$time" || { late && fuzz 30s; }; then
		tail -n 2 "$work/out" | head -n 1
	else
		cat "$work/out"
		failed="$failed $target"
	fi
	count=$((count + 1))
done <"$work/targets"
echo "$count fuzz targets, $time each"
test -z "$failed" || { echo "failed:$failed" >&2; exit 1; }
