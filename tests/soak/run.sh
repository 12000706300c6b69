#!/usr/bin/env bash
# Every promise about kills, whole: all points and hundreds of random moments, in place of the sample that `make test`
# takes, and recovery on every version of PostgreSQL. Prints what was counted.
#
#   tests/soak/run.sh [MOMENTS] [PART]
#
# MOMENTS random moments (200); PART is `runs`, `deploys`, `recovery` or all of them. On two cores that do nothing else
# allow an hour for `recovery` and an hour for the two others; each test says how long it took.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What the tests ask for: all of it when it is set, and so many moments or sequences where they are drawn by chance.
export MAINSTAY_SOAK=${1:-200}
runs='test(/^(run_survives_kill|run_is_stopped|one_push_one_run|engine_restarts|gates)::/)'
deploys='test(/^deploys::/) + test(/^targets::.*cut_off/)'
recovery='test(/^recovery::/)'
case ${2:-all} in
runs) tests=$runs ;;
deploys) tests="$deploys + (test(/::soak_/) - $recovery)" ;;
recovery) tests=$recovery ;;
all) tests="$runs + $deploys + test(/::soak_/) + $recovery" ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

cargo build --locked --quiet --features failpoints --example mainstay-failpoints
log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
cargo nextest run --locked --profile soak --no-fail-fast --success-output immediate -E "$tests" 2>&1 | tee "$log" || code=$?
echo
echo "counts:"
sed -n 's/^ *\([a-z_]*: .*[0-9].*\)$/  \1/p' "$log" | grep -v -e 'MAINSTAY_SEED' -e 'test result' || true
exit $code
