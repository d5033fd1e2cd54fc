#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Has mandoc read the man pages, as strictly as it can: every remark is an error. Left out is what
# depends on the machine, whether pages that ours refer to are installed; ours have to be there.
set -eu
cd "$(dirname "$0")/../man"
remarks=$(
	for page in *.[0-9]; do
		# Another name of a page: mandoc would rather have a link, which archives and packages
		# would have to make each in its own way.
		if other=$(sed -n 's/^\.so man[0-9]*\///p' "$page") && test -n "$other"; then
			test -e "$other" || echo "$page: there is no $other"
			continue
		fi
		mandoc -T lint -W style "$page" 2>&1 | grep -vE 'referenced manual not found|outdated mandoc.db' || true
		# troff of groff, which mandoc is not, has it end what is measured.
		grep -nE "^\.Bl .*'" "$page" | sed "s/^/$page: an apostrophe in a list's width: /" || true
		sed -n 's/^\.Xr \([^ ]*\) \([0-9]\).*/\1.\2/p' "$page" | sort -u | grep -E '^(aldente|pasta\.|passt\.|pesto\.|slirp4netns\.)' | while read -r other; do
			test -e "$other" || echo "$page: there is no $other"
		done
	done
)
test -z "$remarks" || { echo "$remarks" >&2; exit 1; }
