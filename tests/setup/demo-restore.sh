#!/usr/bin/env bash
# See a database come back: a PostgreSQL under load, a table dropped by mistake and fetched back to the second before, then
# the server, its disk, the daemon and its state gone, and everything restored from the repository and one key.
#
#   tests/setup/demo-restore.sh MAINSTAY         the program; `make demo-restore` builds it and sets the machine up
#
# Everything is in one folder under /tmp, which goes at the end, also on Ctrl-C. No container and no root is needed; started
# as root it runs the servers as the user `postgres`, since PostgreSQL refuses root.
set -euo pipefail

binary=$(realpath "${1:?usage: demo-restore.sh MAINSTAY}")
# The newest that Debian has installed.
bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)

demo=demo-restore
. "$(dirname "${BASH_SOURCE[0]}")/tell.sh"

[ -n "$bin" ] && [ -x "$bin/initdb" ] && [ -x "$bin/pgbench" ] || {
    echo "demo-restore: failed to find PostgreSQL's programs under /usr/lib/postgresql" >&2
    echo "hint: \`make demo-restore\` installs them" >&2
    exit 3
}

# ---- servers, and who they run as -----------------------------------------------------------------------------------

user=$(id -un)
[ "$(id -u)" != 0 ] || user=postgres
as_user() {
    if [ "$(id -u)" = 0 ]; then setpriv --reuid "$user" --regid "$user" --clear-groups "$@"; else "$@"; fi
}
free_ports() {
    python3 -c 'import socket,sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
[s.bind(("127.0.0.1", 0)) for s in held]
print(*[s.getsockname()[1] for s in held])' "$1"
}
sql() { as_user "$bin/psql" -h 127.0.0.1 -p "$1" -U postgres -d shop -qAtX -v ON_ERROR_STOP=1 -c "$2"; }

folder=$(mktemp -d /tmp/restore-demo.XXXXXX)
chmod 755 "$folder"
servers=$folder/servers
mkdir "$servers"
[ "$(id -u)" != 0 ] || chown "$user" "$servers"
export RESTORE_DEMO=$folder
unset MAINSTAY_CONFIG MAINSTAY_STATE MAINSTAY_URL MAINSTAY_TOKEN_FILE MAINSTAY_LOG

# A process of this demo is known by its folder: a number alone may long be another's.
stop_ours() {
    local pid=$1 signal=$2
    { tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | grep -qxF "RESTORE_DEMO=$folder" || return 0
    kill "-$signal" "$pid" 2>/dev/null || true
}
finish() {
    local code=$? pid
    trap - EXIT
    trap '' INT TERM HUP
    for pid in "$folder"/*.pid; do [ ! -e "$pid" ] || stop_ours "$(cat "$pid")" TERM; done
    for pid in "$servers"/*/postmaster.pid; do [ ! -e "$pid" ] || stop_ours "$(head -n 1 "$pid")" INT; done
    sleep 1
    for pid in "$servers"/*/postmaster.pid; do [ ! -e "$pid" ] || stop_ours "$(head -n 1 "$pid")" QUIT; done
    rm -rf "$folder"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

read -r daemon_port port side_port <<<"$(free_ports 3)"

start_server() {
    as_user "$bin/pg_ctl" -D "$servers/$1" -l "$servers/$1.log" -w -t 60 start >/dev/null || die "start the server: $(tail -n 3 "$servers/$1.log")"
}
start_daemon() {
    prompt "mainstay serve &"
    setsid "$binary" serve </dev/null >"$folder/daemon.log" 2>&1 &
    echo $! >"$folder/daemon.pid"
    # It will be killed, and the shell need not say so.
    disown
    until_so 30 "the daemon begin" shipping
}
shipping() { "$binary" --json status 2>/dev/null | grep -q '"state":"shipping"'; }

# ---- the story ------------------------------------------------------------------------------------------------------

title "A database"
say "everything is in $folder"
as_user "$bin/initdb" -D "$servers/main" -U postgres -A trust -k >/dev/null
cat >>"$servers/main/postgresql.conf" <<END
port = $port
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
END
start_server main
as_user "$bin/createdb" -h 127.0.0.1 -p "$port" -U postgres shop
as_user "$bin/pgbench" -h 127.0.0.1 -p "$port" -U postgres -i -q -s 20 shop 2>/dev/null
sql "$port" "create table orders (id bigserial primary key, at timestamptz default clock_timestamp());
    create table customers as select n as id, md5(n::text) as name from generate_series(1, 10000) n;
    create role backup login replication"
say "$(sql "$port" "select pg_size_pretty(pg_database_size('shop'))"), on port $port"

title "Keys, a repository, and a file for the source"
cd "$folder"
mainstay key new keys
mkdir backups
export MAINSTAY_CONFIG=$folder/mainstay.yml
cat >mainstay.yml <<END
server: { listen: "127.0.0.1:$daemon_port" }
state: $folder/state
repository:
  url: $folder/repository
  encrypt-to: [$(sed -n 's/^# public key: //p' keys/identity.txt)]
  sign-with: $folder/keys/sign.key
END
cat >backups/shop-db.yml <<END
postgres: "postgres://backup@127.0.0.1:$port/shop?sslmode=disable"
rpo: 5s
rto: 15m
restore: { into: server, bin: $bin, user: $user, port: $port, target: $servers/restored }
END
prompt "cat mainstay.yml backups/shop-db.yml"
cat mainstay.yml backups/shop-db.yml
# The key that opens backups is not where they are made.
mkdir "$folder/safe"
mv keys/identity.txt "$folder/safe/identity.txt"
start_daemon

title "A backup, under load"
as_user "$bin/pgbench" -h 127.0.0.1 -p "$port" -U postgres -n -c 4 -T 600 shop >/dev/null 2>&1 &
echo $! >"$folder/pgbench.pid"
disown
mainstay backup shop-db
mainstay backups

title "A table is dropped by mistake"
for _ in $(seq 20); do sql "$port" "insert into orders default values"; done
sleep 1
before=$(date -u +%Y-%m-%dT%H:%M:%SZ)
sleep 2
prompt "psql -c 'drop table customers'"
sql "$port" "drop table customers"
sleep 3
say "It was there at $before. Beside the running server, the database as it was then:"
mainstay restore shop-db --at "$before" --identity safe/identity.txt --target "$servers/side" --port "$side_port"
found=$(sql "$side_port" "select count(*) from customers")
say "customers there: $found"
[ "$found" = 10000 ] || die "find the table as it was: $found rows of 10000"
as_user "$bin/pg_ctl" -D "$servers/side" -m fast -w stop >/dev/null

title "The server, its disk, the daemon and its state are gone"
written=0
stop_at=$((SECONDS + 5))
while [ "$SECONDS" -lt "$stop_at" ]; do
    sql "$port" "insert into orders default values" && written=$((written + 1))
done
last=$(sql "$port" "select count(*) from orders")
sleep 3
say "$last orders were acknowledged; 3 s after the last one:"
prompt "kill -9 …; rm -rf the data directory and the daemon's state"
stop_ours "$(cat "$folder/pgbench.pid")" KILL
stop_ours "$(cat "$folder/daemon.pid")" KILL
main_pid=$(head -n 1 "$servers/main/postmaster.pid")
stop_ours "$main_pid" KILL
until_so 20 "the server die" [ ! -e "/proc/$main_pid" ]
sleep 1
rm -rf "$servers/main" "$folder/state" "$folder/mainstay.yml" "$folder/backups" "$folder/keys"
unset MAINSTAY_CONFIG

title "3 a.m.: the repository, the key, and one command"
mainstay restore --latest --repository "$folder/repository" --identity safe/identity.txt
found=$(sql "$port" "select count(*) from orders")
say "orders there: $found of $last"
[ "$found" = "$last" ] || die "find every order: $found of $last"
