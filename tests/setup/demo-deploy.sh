#!/usr/bin/env bash
# See staged deploys on this machine: staging, a yes by mail, production, and a version that turns bad and goes back by
# itself, under fifty requests a second all the while.
#
#   tests/setup/demo-deploy.sh MAINSTAY          the program; `make demo-deploy` builds it and sets the machine up
#
# Everything is in one folder under /tmp and in two stacks of the swarm, and all of it goes at the end, also on Ctrl-C.
# Several may run side by side; what one left that was killed, the next removes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath "${1:?usage: demo-deploy.sh MAINSTAY}")
# Debian's own Python, for which aiosmtpd is installed.
python=/usr/bin/python3

demo=demo-deploy
. "$here/tell.sh"
tool() { "$python" "$here/demo-deploy/tool.py" "$@"; }

# ---- the folder, and what goes at the end ---------------------------------------------------------------------------

# stop_process PID FOLDER: ends a process of this demo. It is known by its folder, which stands in its environment: a
# number alone may long be another's.
is_ours() { { tr '\0' '\n' <"/proc/$1/environ"; } 2>/dev/null | grep -qxF "MAINSTAY_CONFIG=$2/mainstay.yml"; }
stop_process() {
    is_ours "$1" "$2" || return 0
    kill -TERM "$1" 2>/dev/null || return 0
    local n
    for n in $(seq 300); do
        is_ours "$1" "$2" || return 0
        [ "$n" != 250 ] || kill -KILL "$1" 2>/dev/null || true
        sleep 0.1
    done
}

# Removes all that a demo in this folder made.
clear_demo() {
    local place=$1 name pid instance list kind
    for pid in "$place"/*.pid; do
        if [ -e "$pid" ]; then stop_process "$(cat "$pid")" "$place"; fi
    done
    name=mainstay-$(basename "$place" | tr '[:upper:].' '[:lower:]-')
    for kind in staging production; do
        list=$(docker service ls -q --filter "label=com.docker.stack.namespace=$name-$kind" 2>/dev/null || true)
        [ -z "$list" ] || docker stack rm "$name-$kind" >/dev/null 2>&1 || true
    done
    # The swarm lets go of containers before networks.
    for _ in $(seq 200); do
        list=
        for kind in staging production; do
            list+=$(docker ps -aq --filter "label=com.docker.stack.namespace=$name-$kind" 2>/dev/null || true)
            list+=$(docker network ls -q --filter "label=com.docker.stack.namespace=$name-$kind" 2>/dev/null || true)
        done
        [ -n "$list" ] || break
        sleep 0.1
    done
    # Of the daemon in the engine: the workspace of a failed run, which would wait a day for a retry.
    instance=$(tool instance "$place/state/mainstay.db" 2>/dev/null || true)
    if [ -n "$instance" ]; then
        docker ps -aq --filter "label=mainstay.instance=$instance" | xargs -r docker rm -fv >/dev/null 2>&1 || true
        docker volume ls -q --filter "label=mainstay.instance=$instance" | xargs -r docker volume rm >/dev/null 2>&1 || true
        docker network ls -q --filter "label=mainstay.instance=$instance" | xargs -r docker network rm >/dev/null 2>&1 || true
    fi
    rm -rf "$place"
}

# What was killed outright: its mark is there, and nobody holds the lock on it.
clear_killed() {
    local place
    for place in /tmp/deploy-demo.*; do
        [ -f "$place/mark" ] && [ -O "$place" ] || continue
        if flock -n "$place/mark" true; then
            say "removing what an earlier demo left"
            clear_demo "$place"
        fi
    done
}

finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP
    title "Cleaning up"
    say "stopping the daemon, the client and the mail server; removing the two stacks and the folder"
    clear_demo "$folder"
    exit $code
}

# Away from the terminal's Ctrl-C: this script stops them in order.
start() {
    local name=$1
    shift
    setsid "$@" </dev/null >"$folder/$name.log" 2>&1 8>&- &
    echo $! >"$folder/$name.pid"
}

for name in MAINSTAY_STATE MAINSTAY_URL MAINSTAY_TOKEN_FILE MAINSTAY_LOG GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_TEMPLATE_DIR; do
    unset "$name"
done
clear_killed
folder=$(mktemp -d /tmp/deploy-demo.XXXXXX)
export MAINSTAY_CONFIG=$folder/mainstay.yml
trap finish EXIT
trap 'exit 130' INT TERM HUP
: >"$folder/mark"
exec 8<"$folder/mark"
flock 8
stack=mainstay-$(basename "$folder" | tr '[:upper:].' '[:lower:]-')
work=$folder/work
read -r daemon_port mail_port staging_port production_port <<<"$(tool ports 4)"

# ---- steps of the story ---------------------------------------------------------------------------------------------

git() {
    GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null command git -C "$work" -c init.defaultBranch=main \
        -c user.name=Cem -c user.email=cem@example.com -c commit.gpgsign=false "$@"
}

# write_stack WORD [ENVIRONMENT]: what brings this version of the application.
write_stack() {
    echo "$1" >"$work/version"
    cat >"$work/deploy/stack.yml" <<END
services:
  app:
    image: mainstay-test/app:one${2:+
    environment: $2}
    networks: [net]
    healthcheck: { test: [CMD, /app, health] }
    stop_grace_period: 5s
    deploy: { replicas: 2, endpoint_mode: dnsrr }
  proxy:
    image: mainstay-test/proxy:1
    networks: [net]
    ports: [{ target: 80, published: '\${PORT}', mode: host }]
    deploy: { endpoint_mode: dnsrr }
networks: { net: {} }
END
}

write_config() {
    cat >"$folder/mainstay.yml" <<END
server: { listen: "127.0.0.1:$daemon_port" }
state: $folder/state
people:
  users:
    ana: { mail: ana@example.com }
    ben: { unix: $(id -un) }
  groups: { release-managers: [ana, ben] }
repos:
  shop: { url: $folder/shop.git, branch: main }
notify:
  smtp: { url: "smtp+plain://127.0.0.1:$mail_port", from: "Mainstay <ci@example.com>" }
environments:
  staging:
    from: [{ repo: shop, branches: [main], pipelines: [deploy] }]
    target: { swarm: { stack: deploy/stack.yml, repo: shop, name: $stack-staging } }
    variables: { PORT: "$staging_port", PATIENCE: "3600" }
    health: [{ http: "http://127.0.0.1:$staging_port/", every: 500ms, failures: 3, within: 60s }]
    watch: 5s
    downtime: allowed
  production:
    from: [{ repo: shop, branches: [main], pipelines: [deploy] }]
    target: { swarm: { stack: deploy/stack.yml, repo: shop, name: $stack-production } }
    variables: { PORT: "$production_port", PATIENCE: "20" }
    health: [{ http: "http://127.0.0.1:$production_port/", every: 500ms, failures: 3, within: 60s }]
    watch: $1
    downtime: allowed
    approval: { from: [release-managers], allow-unknown-pusher: true }
END
}

push() {
    git add -A
    git commit -q -m "$1"
    prompt "git push origin main      ($1)"
    git push -q origin main
    until_so 30 "the run of the push" has_run
    say "that is run $run"
}
has_run() {
    run=$("$binary" --json runs 2>/dev/null | tool json "commit=$(git rev-parse HEAD)" id 2>/dev/null)
}

# Waits for the request of the run, and shows on the way what happens.
wait_approval() {
    say "image, staging, health, load check: about a quarter of a minute"
    until_so 120 "the request for approval" has_approval
}
has_approval() {
    local state
    state=$("$binary" --json show "$run" 2>/dev/null | tool json status 2>/dev/null)
    case $state in
    success | failure | cancelled | error)
        "$binary" show "$run" || true
        die "get run $run as far as the approval"
        ;;
    esac
    approval=$("$binary" --json approvals 2>/dev/null | tool json "run=$run" id 2>/dev/null)
}

# wait_mail PATTERN: the newest mail in whose text it is.
mails=0
wait_mail() { until_so 30 "the mail" has_mail "$1"; }
has_mail() {
    local next=$folder/mail-$((mails + 1)).json
    [ -e "$next" ] || return 1
    mails=$((mails + 1))
    found=$(tool find "$next" "$1") && letter=$next
}

has_ended() {
    status=$("$binary" --json show "$run" 2>/dev/null | tool json status 2>/dev/null)
    case $status in queued | running | waiting | pending) return 1 ;; esac
}
has_status() { [ "$("$binary" --json environments production 2>/dev/null | tool json deploys 0 status 2>/dev/null)" = "$1" ]; }

# phase NAME: what the client sees from now on is counted under it.
phase() { printf '%s %s\n' "$(date +%s.%3N)" "$*" >>"$folder/phases"; }

# ---- the story ------------------------------------------------------------------------------------------------------

title "A repository, and two environments"
say "everything is in $folder"
mkdir -p "$work/deploy" "$work/.mainstay"
GIT_CONFIG_GLOBAL=/dev/null command git init -q --bare -b main "$folder/shop.git"
git init -q
git remote add origin "$folder/shop.git"
cat >"$work/.mainstay/deploy.yml" <<'END'
on: { push: { branches: [main] } }
steps:
  # Yours would build it. Here three versions are there already.
  image:
    image: busybox:latest
    commands: ['echo "app=mainstay-test/app:$(cat version)" >>"$MAINSTAY_OUTPUT"']
  staging:
    needs: image
    deploy: { environment: staging, images: { app: "${{ steps.image.app }}" } }
  load:
    needs: staging
    image: debian:12
    environment: { PORT: "STAGING_PORT" }
    commands: [bash deploy/load.sh]
    timeout: 1m
  go-live:
    needs: load
    approval: { environment: production, message: Staging has held under load. }
  production:
    needs: go-live
    deploy: { environment: production, images: { app: "${{ steps.image.app }}" } }
END
sed -i "s/STAGING_PORT/$staging_port/" "$work/.mainstay/deploy.yml"
cat >"$work/deploy/load.sh" <<'END'
# 50 requests a second for 2 s to staging, by the address that the node has for this container.
while read -r _ to gate _; do [ "$to" != 00000000 ] || break; done </proc/net/route
node=$((16#${gate:6:2})).$((16#${gate:4:2})).$((16#${gate:2:2})).$((16#${gate:0:2}))
ask() {
    exec 3<>"/dev/tcp/$node/$PORT" || return 1
    printf 'GET / HTTP/1.1\r\nHost: staging\r\nConnection: close\r\n\r\n' >&3
    read -r _ status _ <&3 && [ "$status" = 200 ]
}
asked=() failed=0
for _ in {1..100}; do
    ask &
    asked+=($!)
    sleep 0.02
done
for one in "${asked[@]}"; do wait "$one" || failed=$((failed + 1)); done
echo "load check: ${#asked[@]} requests to $node:$PORT, $failed failed"
[ "$failed" = 0 ]
END
write_stack one
write_config 5s
prompt "cat deploy/stack.yml"
cat "$work/deploy/stack.yml"
prompt "cat .mainstay/deploy.yml"
cat "$work/.mainstay/deploy.yml"
prompt "cat mainstay.yml"
sed -n '/^people/,$p' "$folder/mainstay.yml"
say ""
say "The proxy holds a port of the node, so a version of it that changed could only start once the old one has stopped:"
say "that is \`downtime: allowed\`. It does not change here, and the application never stops."
(cd "$work" && mainstay graph .mainstay/deploy.yml)

title "A daemon, and a mail server that keeps what it takes"
start mail "$python" "$here/../it/support/smtp_server.py" "$folder" "$mail_port" plain
prompt "mainstay serve &"
start daemon "$binary" serve
until_so 30 "the mail server begin" grep -q listening "$folder/mail.log"
ready() { "$binary" status >/dev/null 2>&1; }
until_so 60 "the daemon begin" ready
mainstay hook install "$folder/shop.git"

title "Version one: staging, then a yes by mail"
write_stack one
push "Version one"
wait_approval
wait_mail 'http://127\.0\.0\.1:[0-9]+/a/\S+'
mainstay show "$run"
mainstay logs "$run" load
say ""
say "Nobody has said yes, so production is untouched. Ana has mail:"
tool mail "$letter"
link=$found
say ""
say "Its link shows on GET, which mail scanners do too; only a POST decides, with six digits from a second mail:"
page() { curl -sS --noproxy '*' "$@" | tr '\n' ' ' | sed -e 's/<style.*<\/style>//' -e 's/<[^>]*>/ /g' | tr -s ' ' | cut -c1-"$width"; }
width=230
prompt "curl LINK"
page "$link" && say ""
width=200
prompt "curl -d verdict=approve LINK"
page -d verdict=approve "$link" && say ""
wait_mail '^ +\d{3} ?\d{3}\s*$'
tool mail "$letter"
prompt "curl -d verdict=approve -d code=$found LINK"
page -d verdict=approve -d "code=$found" "$link" && say ""
say ""
say "Production is deployed, and watched for 5 s:"
until_so 120 "run $run end" has_ended
mainstay show "$run"
[ "$status" = success ] || die "get version one to production"
mainstay environments

title "Version two: a yes by command, under fifty requests a second"
say "From here on a client asks production 50 times a second, until the end."
phase "version one serves"
start client "$python" "$here/demo-deploy/tool.py" ask "http://127.0.0.1:$production_port/" "$folder/asked"
write_stack two
push "Version two"
wait_approval
say "Whoever pushed does not say yes to it. On this machine's socket you are ben, and ben pushed:"
mainstay approve "$approval" && die "see ben's own yes refused"
say "So ana says it, with a token of hers from elsewhere:"
prompt "mainstay token create ana > ana.token"
(umask 077 && "$binary" token create ana --name demo >"$folder/ana.token")
as_ana() {
    prompt "MAINSTAY_URL=http://127.0.0.1:$daemon_port MAINSTAY_TOKEN_FILE=ana.token mainstay $(typed "$@")"
    MAINSTAY_URL=http://127.0.0.1:$daemon_port MAINSTAY_TOKEN_FILE=$folder/ana.token "$binary" "$@"
}
phase "version two is deployed, and serves"
as_ana approve "$approval" --message "looks right"
until_so 120 "run $run end" has_ended
mainstay show "$run"
[ "$status" = success ] || die "get version two to production"

title "Version three: it turns bad 20 seconds after the switch"
say "Its fault shows in production alone: all answers are a 500 there after 20 s. Production is now watched for 40 s."
write_config 40s
mainstay reload
write_stack three "{ TURNS_BAD_AFTER_SECS: '\${PATIENCE}' }"
push "Version three"
wait_approval
phase "version three is deployed, turns bad, goes back"
as_ana approve "$approval"
until_so 60 "the watch" has_status watching
say "It serves, and its health rules hold. Now it is watched:"
mainstay environments
say "... and after 20 s:"
until_so 120 "run $run end" has_ended
phase "version two serves again"
mainstay show "$run"
[ "$status" = failure ] || die "see version three rolled back"
say ""
api() { curl -sS --noproxy '*' --unix-socket "$folder/state/mainstay.sock" "http://localhost/api/v1/$1"; }
api "environments/production/deploys?limit=20" >"$folder/deploys"
tool json 'status=rolled-back' <"$folder/deploys" >"$folder/deploy"
tool rollback "$folder/asked" "$folder/deploy" three
say ""
say "Each replica turns bad 20 s after its own start, so for a while the proxy still finds a good one. Asked every 500 ms,"
say "a rule calls the release bad after 3 bad answers in a row. Then both replicas are replaced at once."
say ""
mainstay environments production || true
mainstay releases production
say "The history is in the repository too, signed:"
prompt "git log --oneline refs/mainstay/production"
command git -C "$folder/shop.git" --no-pager log --oneline refs/mainstay/production --not main

title "A commit on top of it"
say "The commit is held: no push, poll, webhook or schedule brings it back. One that still contains it needs a yes that"
say "knows of it:"
date >"$work/notes"
push "Unrelated notes"
wait_approval
prompt "mainstay approvals $approval"
"$binary" approvals "$approval" | sed -n 1,4p
as_ana reject "$approval" --message "version three first"
until_so 30 "run $run end" has_ended
mainstay runs

title "What the client saw"
stop_process "$(cat "$folder/client.pid")" "$folder"
tool report "$folder/asked" "$folder/phases"

title "What to try next"
say "In a project of your own, begin with \`mainstay init\`; docs/user-guide/deploys.md has the words, and"
say "pipelines/deploy.yml and pipelines/rollback.yml are pipelines to begin with. There"
for line in \
    "mainstay doctor|whether this machine is a swarm manager, and has a routing mesh" \
    "mainstay promote production --from staging|what is in staging, without a push" \
    "mainstay rollback production --to 1|back to any release; the same act as a deploy" \
    "mainstay hold production --reason audit|deploys nothing until \`mainstay release-hold production\`" \
    "git revert --no-edit HEAD && git push|lifts a hold by no longer containing what was bad" \
    "git log refs/mainstay/production|the releases, in the repository itself"; do
    printf '  %-43s%s%s%s\n' "${line%%|*}" "$dim" "${line#*|}" "$plain"
done
