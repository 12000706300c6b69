#!/usr/bin/env bash
# Starts dockerd on a machine without systemd, as root: detached from this terminal, with a log and a pid file, and
# returns when it answers. One that is already on its way up is waited for.
set -euo pipefail
log=/var/log/dockerd.log
pidfile=/var/run/docker.pid
socket=unix:///var/run/docker.sock

answers() { docker -H "$socket" version --format '{{.Server.Version}}' >/dev/null 2>&1; }
on_its_way() { [ -s "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; }

answers && exit 0
if ! on_its_way; then
    # A pid file that outlived its process (a power cut) makes dockerd refuse to start.
    rm -f "$pidfile"
    # A daemon that inherited our open files would hold the set-up's lock, and keep whoever reads our output waiting.
    (
        for fd in /proc/self/fd/*; do
            fd=${fd##*/}
            if [ "$fd" -gt 2 ]; then eval "exec $fd>&-" 2>/dev/null || true; fi
        done
        exec setsid dockerd --host "$socket" --pidfile "$pidfile" >>"$log" 2>&1 </dev/null
    ) &
    sleep 1
fi
# A first start lays out its data folder and loads kernel modules; slow disks were seen to take 20 s.
for _ in $(seq 60); do
    answers && exit 0
    on_its_way || break
    sleep 1
done
answers && exit 0
{
    echo "set-up: failed to start dockerd; the end of $log:"
    tail -n 15 "$log"
    echo "hint: it needs root, iptables and cgroups; inside a container, run that container privileged"
} >&2
exit 3
