#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Tells whether the files of a release are those that were signed: both signatures, by one who may
# sign; the sum of each file that is there; and that the statement of provenance is about the
# same files. Needs ssh-keygen, and neither network nor root.
#
#	packaging/verify.sh SIGNERS IDENTITY [DIR]        the folder that they are in; this one if not said
#
# SIGNERS is a file of allowed signers (ssh-keygen(1)): a line "IDENTITY KEY" each.
set -eu
test $# -ge 2 || { echo "usage: $0 SIGNERS IDENTITY [DIR]" >&2; exit 2; }
signers=$(readlink -f "$1") identity=$2
cd "${3:-.}"
fail() { echo "$0: $*" >&2; exit 1; }

set -- aldente-*.provenance.json
test $# = 1 && test -f "$1" || fail "there has to be one aldente-VERSION.provenance.json"
for f in SHA256SUMS "$1"; do
	test -f "$f.sig" || fail "$f has no signature: there is no $f.sig"
	ssh-keygen -q -Y verify -n file -f "$signers" -I "$identity" -s "$f.sig" <"$f" >&2 || fail "$f is not what $identity has signed"
done
# Whoever wants one archive need not have fetched them all, but has at least one.
sha256sum --quiet --strict --ignore-missing -c SHA256SUMS >&2 || fail "a file is not the one that was signed, or none of them is here"
sums=$(sed -E 's/^([0-9a-f]{64})  (.*)$/\1 \2/' SHA256SUMS | sort)
stated=$(grep -oE '"name":"[^"]*","digest":\{"sha256":"[0-9a-f]{64}"\}' "$1" | sed -E 's/^"name":"([^"]*)".*"sha256":"([0-9a-f]*)".*/\2 \1/' | sort)
test "$sums" = "$stated" || fail "$1 is about other files than SHA256SUMS"
commit=$(grep -oE '"gitCommit":"[0-9a-f]{40,64}"' "$1" | grep -oE '[0-9a-f]{40,64}') || fail "$1 names no commit"
echo "all is as $identity has signed it, made of commit $commit"
