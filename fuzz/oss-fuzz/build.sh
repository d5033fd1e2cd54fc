#!/bin/bash -eu
# SPDX-License-Identifier: Apache-2.0
# Builds every target of fuzz/targets.txt for OSS-Fuzz, with its seeds and its
# dictionary. OSS-Fuzz calls it in its builder's image, with SRC, OUT and WORK set.
cd "${SRC:?}/aldente"

# Seeds: native ones are converted, captures are divided into frames.
seeds=${WORK:?}/seeds
rm -rf "$seeds"
CGO_ENABLED=0 GOFLAGS=-buildvcs=false go run ./fuzz/seeds "$seeds"

# The second version of compile_native_go_fuzzer: the first leaves out helpers in
# other _test.go files.
while read -r package target dictionary; do
	compile_native_go_fuzzer_v2 "aldente/$package" "$target" "$target"
	if test -d "$seeds/$target"; then
		(cd "$seeds/$target" && find . -type f | zip -q -@ "${OUT:?}/${target}_seed_corpus.zip")
	fi
	if test "$dictionary" != -; then
		cp "fuzz/dict/$dictionary.dict" "$OUT/$target.dict"
	fi
done < <(grep -v '^#' fuzz/targets.txt)
