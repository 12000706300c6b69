#!/usr/bin/env bash
# Removes what was built here and what Mainstay left in the engine, known by its labels `mainstay.…`. Anything without
# such a label was not made by us and stays. With --dry-run it only says what it would remove.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/setup/lib.sh
. "$here/lib.sh"
. "$here/engine.sh"
. "$here/images.sh"
. "$here/sample.sh"
. "$here/swarm.sh"
dry_run=no
[ "${1:-}" = --dry-run ] && dry_run=yes

# Reads `ID key=value,key=value` lines, prints the ids that are ours. `mainstay.setup` does not count here: it sits on
# base images, and the engine passes an image's labels on to everything that users make from it.
ours() {
    awk '{
        id = $1; $1 = ""; n = split($0, labels, ",")
        for (i = 1; i <= n; i++) {
            sub(/^ +/, "", labels[i])
            if (labels[i] ~ /^mainstay\./ && labels[i] !~ /^mainstay\.setup=/) { print id; break }
        }
    }'
}

# Runs the engine command on every id that comes in.
each() {
    local id
    while read -r id; do
        if [ $dry_run = yes ]; then
            say "would do: docker $* $id"
        else
            "${DOCKER[@]}" "$@" "$id" >/dev/null </dev/null || say "could not do: docker $* $id"
        fi
    done
}

# The base images by name, and only where set-up made them; a pulled one has no label.
made_by_set_up() {
    local image
    for image in $(sample_images) "$DEMO_IMAGE" alpine:3 busybox:latest debian:12; do
        "${DOCKER[@]}" image ls --format '{{.Repository}}:{{.Tag}}' --filter label=mainstay.setup --filter "reference=$image"
    done
}

# Stacks that Mainstay deployed.
stacks() {
    [ "$(swarm_state)" = "active true" ] || return 0
    "${DOCKER[@]}" service ls -q --filter label=mainstay.environment |
        xargs -r "${DOCKER[@]}" service inspect -f '{{index .Spec.Labels "com.docker.stack.namespace"}}' | sort -u
}

# The images whose own labels are ours.
image_labels() {
    local id
    "${DOCKER[@]}" image ls -q --no-trunc | sort -u | while read -r id; do
        "${DOCKER[@]}" image inspect --format '{{.Id}} {{range $key, $value := .Config.Labels}}{{$key}}={{$value}},{{end}}' "$id"
    done
}

clean_engine() {
    if closed_to_us; then DOCKER=(as_root docker); fi
    if ! command -v docker >/dev/null || ! "${DOCKER[@]}" version >/dev/null 2>&1; then
        say "no container engine answers: nothing to clean there"
        return 0
    fi
    stacks | each stack rm
    "${DOCKER[@]}" ps -a --format '{{.ID}} {{.Labels}}' | ours | each rm --force --volumes
    "${DOCKER[@]}" network ls --format '{{.ID}} {{.Labels}}' | ours | each network rm
    "${DOCKER[@]}" volume ls --format '{{.Name}} {{.Labels}}' | ours | each volume rm
    image_labels | ours | each rmi
    made_by_set_up | each rmi
    leave_swarm
}

clean_files() {
    local folder
    for folder in "$root"/mainstay-demo*; do
        # Only what carries a demo's mark.
        [ -f "$folder/.mainstay-demo" ] || continue
        if [ $dry_run = yes ]; then say "would remove $folder"; else rm -rf "$folder"; fi
    done
    # The target folder of this checkout, and the one that .ci/run keeps; one that you share between projects only
    # loses this package.
    for folder in "$root/target" "$(cache_dir)/target"; do
        [ -d "$folder" ] || continue
        if [ $dry_run = yes ]; then say "would remove $folder"; else rm -rf "$folder"; fi
    done
    if [ $dry_run = no ] && [ -d "$(target_dir)" ]; then
        (cd "$root" && cargo clean --quiet --package mainstay --target-dir "$(target_dir)") || true
        rm -rf "$(target_dir)/demo-project"
    fi
}

locked clean_engine
clean_files
say "clean; the test tools in $(cache_dir)/tools stay, remove that folder to build them anew"
