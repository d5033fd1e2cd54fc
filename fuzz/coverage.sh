#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints how many statements of each parser's package are reached by the seeds of
# its fuzz targets alone: no test is run, and nothing that a fuzzer found and kept
# in the build cache.
#
#	fuzz/coverage.sh [LEAST [PROFILES]]
#
# fails below LEAST per cent; PROFILES is a folder for profiles, which
# "go tool cover -html" shows.
set -eu
cd "$(dirname "$0")/.."
least=${1:-0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
profiles=${2:-$work}
status=0
for package in worker/packet worker/arp worker/ndp worker/dhcp worker/dhcpv6 worker/link ipc ipc/domain names/dns names/frame names/hello; do
	profile=$profiles/$(echo "$package" | tr / -).out
	CGO_ENABLED=0 go test -count=1 -run '^Fuzz' -coverprofile="$profile" "./$package" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
	figure=$(go tool cover -func="$profile" | awk '/^total:/ { print $3 }')
	echo "$package $figure"
	awk -v a="${figure%\%}" -v b="$least" 'BEGIN { exit a + 0 < b + 0 }' || status=1
done
test $status = 0 || echo "below $least %" >&2
exit $status
