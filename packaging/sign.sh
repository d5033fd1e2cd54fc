#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Signs what "make dist" has made: the sums, and through them the archives, and the statement of
# provenance. It asks for the key's passphrase, or has ssh-agent sign if KEY is a public one. Builds
# nothing, and wants to be run where nothing is built. packaging/verify.sh is its opposite.
#
#	packaging/sign.sh KEY [DIR]        build/dist if not said
set -eu
test $# -ge 1 || { echo "usage: $0 KEY [DIR]" >&2; exit 2; }
key=$(readlink -f "$1")
cd "${2:-$(dirname "$0")/../build/dist}"
# Not what somebody has changed since.
sha256sum --quiet --strict -c SHA256SUMS
for f in SHA256SUMS aldente-*.provenance.json; do
	test -f "$f" || { echo "$0: there is no $f" >&2; exit 1; }
	rm -f "$f.sig"
	ssh-keygen -q -Y sign -n file -f "$key" "$f"
done
