# What every set-up script uses: words, root, the lock, folders, Debian packages. Sourced, never run.

set -euo pipefail
# A plain Debian user has no sbin in the path, and dockerd, iptables and sshd live there.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { printf 'set-up: %s\n' "$*" >&2; }
die() {
    printf 'set-up: failed to %s\n' "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf 'hint: %s\n' "$hint" >&2; done
    exit 3
}

# Runs a command as root; says which, so that nobody types a password blindly.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -n true 2>/dev/null || say "this needs root: $*"
        sudo "$@"
    else
        die "run as root: $*" "install sudo, or run this once as root"
    fi
}

# One at a time on this machine, whoever asks: the engine and its images are shared by all users. Read-only locking
# of a file anybody may read, because the kernel refuses to open another user's file in /tmp for creation.
locked() {
    local file=/tmp/mainstay-setup.lock
    if ! [ -e "$file" ]; then (umask 022 && : >"$file") 2>/dev/null || true; fi
    {
        flock -n 9 || { say "waiting for another set-up to finish" && flock 9; }
        "$@"
    } 9<"$file"
}

# Where things are kept between checkouts. Only ever a shortcut: all of it may vanish at any time.
cache_dir() {
    local dir=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/mainstay
    if ! mkdir -p "$dir" 2>/dev/null || ! [ -w "$dir" ]; then
        dir=$root/target/cache
        mkdir -p "$dir"
    fi
    printf '%s\n' "$dir"
}

target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$root/target}"; }

# Installs the packages of a list whose program or file is missing. Nothing missing, nothing asked.
install_packages() {
    local have package missing=()
    while read -r have package; do
        [ -n "$have" ] || continue
        case $have in
        /*) [ -e "$have" ] && continue ;;
        *) command -v "$have" >/dev/null && continue ;;
        esac
        [[ " ${missing[*]} " == *" $package "* ]] || missing+=("$package")
    done <<<"$1"
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "install ${missing[*]}" "this is not Debian: install them with your own package manager"
    say "installing Debian packages: ${missing[*]}"
    local ssh_was_there=no
    command -v sshd >/dev/null && ssh_was_there=yes
    local postgres_was_there=no
    [ -d /etc/postgresql ] && postgres_was_there=yes
    # apt's own lock may be held by an unattended upgrade: wait for it rather than fail.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    as_root "${apt[@]}" update >/dev/null </dev/null || die "read Debian's package lists" "is the machine online? see /etc/apt/sources.list"
    # RUNLEVEL=1 keeps services of new packages from starting now; the engine is started by us, when wanted.
    local log
    log=$(mktemp)
    if ! as_root env RUNLEVEL=1 "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "install ${missing[*]}"
    fi
    rm -f "$log"
    if [ $ssh_was_there = no ] && command -v sshd >/dev/null && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now ssh.service >/dev/null 2>&1 || true
    fi
    # The registry was not here before: its service is not wanted, only its program.
    if [[ " ${missing[*]} " == *" docker-registry "* ]] && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now docker-registry.service >/dev/null 2>&1 || true
    fi
    # Tests start servers of their own; the cluster that comes with the package stays down, unless there was one before.
    if [[ " ${missing[*]} " == *" postgresql-15 "* ]] && [ $postgres_was_there = no ] && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now postgresql.service >/dev/null 2>&1 || true
    fi
}
