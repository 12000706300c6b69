#!/bin/sh
set -e
[ "$(id -u)" != 0 ] || exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
[ -s "$PGDATA/PG_VERSION" ] || initdb -U postgres -A trust >/dev/null
exec "$@"
