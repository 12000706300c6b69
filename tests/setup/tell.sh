# How a demo tells its story. Sourced, with `demo` (its name), `binary` (the program) and later `folder` (where it works)
# set; never run.

strong='' dim='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then strong=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
title() { printf '\n%s== %s%s\n' "$strong" "$*" "$plain"; }
say() { printf '%s\n' "$*"; }
prompt() { printf '%s$ %s%s\n' "$dim" "$*" "$plain"; }
die() {
    printf '%s: failed to %s\n' "$demo" "$1" >&2
    if [ -s "${folder:-}/daemon.log" ]; then
        say "the end of the daemon's log:" >&2
        tail -n 12 "$folder/daemon.log" | cut -c1-300 | sed 's/^/    /' >&2
    fi
    exit 1
}

typed() {
    local word line=
    for word in "$@"; do case $word in *' '*) line+=" \"$word\"" ;; *) line+=" $word" ;; esac done
    printf '%s' "${line# }"
}

# A command as it is typed, and what it says.
mainstay() {
    prompt "mainstay $(typed "$@")"
    "$binary" "$@"
}

# until_so SECONDS WHAT COMMAND...: waits until the command succeeds.
until_so() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || die "see $what"
        sleep 0.1
    done
}
