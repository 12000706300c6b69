#!/usr/bin/env bash
# Every promise about kills, whole: all points and hundreds of random moments, in place of the sample that `make test`
# takes. Prints what was counted. Takes the number of random moments (200); about half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
export MAINSTAY_SOAK=${1:-200}
cargo build --locked --quiet --features failpoints --example mainstay-failpoints
log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
cargo nextest run --locked --profile soak --no-fail-fast --success-output immediate \
    -E 'test(/^(run_survives_kill|run_is_stopped|one_push_one_run|engine_restarts|gates|deploys)::/) + test(/^targets::.*cut_off/) + test(/::soak_/) + test(/^recovery::/)' 2>&1 | tee "$log" || code=$?
echo
echo "counts:"
sed -n 's/^ *\([a-z_]*: .*[0-9].*\)$/  \1/p' "$log" | grep -v -e 'MAINSTAY_SEED' -e 'test result' || true
exit $code
