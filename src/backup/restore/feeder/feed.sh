#!/bin/sh
# Hands the log to a recovering server. Written by `mainstay restore` and run by its restore_command, which answers the
# server 0 for 0: handed out; 1 for 77: the repository proves that there is none; 200 for all else: do not open.
here=${0%/*} name=$1 to=$2 beat='' still=0 all=0
while :; do
    [ -e "$here/failed" ] && exit 200
    if [ -e "$here/wal/$name.ready" ]; then
        : >"$here/asked/$name"
        ln "$here/wal/$name" "$to" 2>/dev/null && exit 0
        cp "$here/wal/$name" "$to" && exit 0
        rm -f "$to"
    elif grep -qxF -e "$name" "$here/end"; then
        exit 77
    else
        [ -e "$here/whole" ] && exit 200
        : >"$here/asked/$name"
    fi
    # Whoever restores writes a new number here each second; when it stays the same, nobody will bring the file.
    read -r now <"$here/alive"
    if [ "$now" = "$beat" ]; then still=$((still + 1)); else beat=$now still=0; fi
    # And whoever lives and does not bring it within an hour is stuck.
    all=$((all + 1))
    if [ "$still" -ge @PATIENCE@ ] || [ "$all" -ge 72000 ]; then exit 200; fi
    sleep 0.05 2>/dev/null || { sleep 1; still=$((still + 20)) all=$((all + 20)); }
done
