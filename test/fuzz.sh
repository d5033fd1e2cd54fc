#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of every package for the time given.
set -eu
GO=${GO:-go}
time=${1:-10s}
count=0
for package in $("$GO" list ./...); do
	for target in $("$GO" test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "== $package $target"
		"$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
		count=$((count + 1))
	done
done
echo "$count fuzz targets, $time each"
