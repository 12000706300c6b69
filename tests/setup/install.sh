#!/usr/bin/env bash
# Installs the binary, its manual pages, shell completions and a systemd unit:
#   install.sh BINARY DESTDIR PREFIX UNITDIR
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/setup/lib.sh
. "$here/lib.sh"
binary=$1 destdir=$2 prefix=$3 unitdir=$4

# Root only where the place asks for it: a package build into DESTDIR does not.
nearest=$destdir$prefix
while [ -n "$nearest" ] && ! [ -e "$nearest" ]; do nearest=${nearest%/*}; done
if [ -w "${nearest:-/}" ]; then place() { "$@"; } else place() { as_root "$@"; }; fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$binary" man "$scratch/man"
for shell in bash zsh fish; do "$binary" completions "$shell" >"$scratch/$shell"; done
sed "s#/usr/local/bin/mainstay#$prefix/bin/mainstay#g" "$here/../../hooks/mainstay.service" >"$scratch/mainstay.service"

place install -D -m 0755 "$binary" "$destdir$prefix/bin/mainstay"
for page in "$scratch"/man/*.1; do place install -D -m 0644 "$page" "$destdir$prefix/share/man/man1/${page##*/}"; done
place install -D -m 0644 "$scratch/bash" "$destdir$prefix/share/bash-completion/completions/mainstay"
place install -D -m 0644 "$scratch/zsh" "$destdir$prefix/share/zsh/site-functions/_mainstay"
place install -D -m 0644 "$scratch/fish" "$destdir$prefix/share/fish/vendor_completions.d/mainstay.fish"
place install -D -m 0644 "$scratch/mainstay.service" "$destdir$unitdir/mainstay.service"
say "installed $destdir$prefix/bin/mainstay and $destdir$unitdir/mainstay.service"

if [ -z "$destdir" ] && [ -d /run/systemd/system ]; then
    as_root systemctl daemon-reload
    if as_root systemctl is-active --quiet mainstay; then
        # The old binary runs until it is told; a restart takes running steps over.
        as_root systemctl restart mainstay && say "restarted the running daemon"
    else
        say "next: make the user mainstay (the unit's first lines say how), write /etc/mainstay/mainstay.yml" \
            "(mainstay init), then: systemctl enable --now mainstay"
    fi
fi
