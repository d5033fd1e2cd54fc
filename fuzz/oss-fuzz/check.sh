#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Checks of the OSS-Fuzz files what can be checked without Docker: the shell's own
# check of syntax, and ShellCheck where there is one; that project.yaml holds the
# fields that OSS-Fuzz wants; that the Dockerfile has the instructions it takes;
# and build.sh itself, run with a stand-in for the builder, which compiles each
# target as the fuzzer is and wants seeds and a dictionary for it.
set -eu
cd "$(dirname "$0")/../.."
here=fuzz/oss-fuzz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "$*" >&2; exit 1; }

bash -n $here/build.sh
sh -n fuzz/capture.sh
sh -n fuzz/coverage.sh
sh -n test/fuzz.sh
if command -v shellcheck >/dev/null; then
	shellcheck $here/*.sh fuzz/*.sh test/fuzz.sh
fi

# project.yaml: scalars and lists of scalars, nothing else.
if grep -Ev '^(#.*|[a-z_]+: ("[^"]*"|[a-z]+)|[a-z_]+:|  - [a-z]+)$' $here/project.yaml; then
	fail "project.yaml: these lines"
fi
for field in homepage language primary_contact main_repo fuzzing_engines sanitizers; do
	grep -q "^$field:" $here/project.yaml || fail "project.yaml: no $field"
done
grep -q '^language: go$' $here/project.yaml || fail "project.yaml: language"
repository=$(sed -n 's/^main_repo: "\(.*\)"$/\1/p' $here/project.yaml)

# Dockerfile
if grep -Ev '^(#.*|(FROM|ARG|RUN|WORKDIR|COPY) .+)$' $here/Dockerfile; then
	fail "Dockerfile: these lines"
fi
grep -q '^FROM .*/base-builder-go$' $here/Dockerfile || fail "Dockerfile: base image"
grep -qF "ARG REPOSITORY=$repository" $here/Dockerfile || fail "Dockerfile: another repository than project.yaml"

# build.sh, with a builder that compiles for Go's own fuzzer.
mkdir -p "$work/src" "$work/out" "$work/work" "$work/bin"
ln -s "$PWD" "$work/src/aldente"
cat >"$work/bin/compile_native_go_fuzzer_v2" <<'BUILDER'
#!/bin/bash -eu
dir=$(go list -f '{{.Dir}}' "$1")
# As the real one does: the function is looked for by this text.
test "$(grep -rh --include='*.go' "func $2" "$dir" | grep -c 'testing\.F')" = 1 || { echo "no func $2 in $1" >&2; exit 1; }
binary=$CHECK/$(echo "$1" | tr / -).test
test -e "$binary" || CGO_ENABLED=0 go test -c -fuzz="^$2\$" -o "$binary" "$1"
(cd "$dir" && "$binary" -test.list "^$2\$") | grep -qx "$2" || { echo "$1 has no $2" >&2; exit 1; }
cp /dev/null "$OUT/$3"
BUILDER
if ! command -v zip >/dev/null; then
	printf '#!/bin/sh\nfor a; do :; done\ncat >"$a"\ntest -s "$a"\n' >"$work/bin/zip"
fi
chmod +x "$work/bin"/*
CHECK=$work SRC=$work/src OUT=$work/out WORK=$work/work PATH=$work/bin:$PATH bash -eu $here/build.sh

count=0
while read -r _ target dictionary; do
	test -e "$work/out/$target" || fail "$target was not built"
	test -s "$work/out/${target}_seed_corpus.zip" || fail "$target has no seeds"
	test "$dictionary" = - || test -s "$work/out/$target.dict" || fail "$target has no dictionary"
	count=$((count + 1))
done < <(grep -v '^#' fuzz/targets.txt)
echo "oss-fuzz: $count targets build, with $(find "$work/work/seeds" -type f | wc -l) seeds"
