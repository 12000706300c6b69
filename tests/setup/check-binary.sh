#!/usr/bin/env bash
# What must hold for a built binary before anybody is given it. Takes its path.
set -euo pipefail
binary=$1
failed=no
wrong() { printf 'binary: %s\n' "$*" >&2 && failed=yes; }

help=$("$binary" --help) || wrong "--help fails"
grep -q 'Exit codes' <<<"$help" || wrong "--help does not name the exit codes"
version=$("$binary" --version) || wrong "--version fails"
expected=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$(dirname "$0")/../../Cargo.toml" | head -n 1)
[ "$version" = "mainstay $expected" ] || wrong "--version says '$version', Cargo.toml says '$expected'"

# One file to copy to a server: nothing shared but the C library's own parts.
while read -r library; do
    case $library in
    linux-vdso.so.* | libc.so.* | libm.so.* | libgcc_s.so.* | libdl.so.* | libpthread.so.* | librt.so.* | /lib*/ld-linux*) ;;
    *) wrong "it needs the shared library $library" ;;
    esac
done < <(ldd "$binary" | awk '{ print $1 }')

# The switch that kills the process at a chosen point is for tests alone.
if grep -q MAINSTAY_FAILPOINT "$binary"; then wrong "it was built with failpoints"; fi

code=0
"$binary" no-such-command >/dev/null 2>&1 || code=$?
[ $code = 2 ] || wrong "an unknown command leaves with $code, not 2"

[ $failed = no ] || exit 1
echo "binary: $binary is $version, $(($(stat -c %s "$binary") / 1048576)) MiB, no failpoints, no libraries but the C ones"
