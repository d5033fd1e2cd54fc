#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a bare tree of a Debian suite, once, and prints where it is: build/packages/SUITE. Needs
# root, debootstrap and the network.
#
#	test/packages/base.sh SUITE
set -eu
cd "$(dirname "$0")/../.."
base=$PWD/build/packages/$1
if ! test -e "$base.ready"; then
	command -v debootstrap >/dev/null || { echo "$0: debootstrap is not installed" >&2; exit 1; }
	mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }')
	rm -rf "$base"
	mkdir -p "$base"
	# shellcheck disable=SC2086
	debootstrap --variant=minbase "$1" "$base" $mirror >&2
	printf '#!/bin/sh\nexit 101\n' >"$base/usr/sbin/policy-rc.d"
	chmod 755 "$base/usr/sbin/policy-rc.d"
	touch "$base.ready"
fi
echo "$base"
