# The engine as a swarm of one node, for tests that deploy stacks. Sourced by prepare.sh and clean.sh.

# A config of the swarm itself says that set-up made it: it goes with the swarm, and stays as long as that.
SWARM_MARK=mainstay-setup-made-this-swarm

swarm_state() { "${DOCKER[@]}" info --format '{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}' 2>/dev/null; }

ensure_swarm() {
    case $(swarm_state) in
    "active true") return 0 ;;
    inactive*) ;;
    *) die "use the engine as a swarm manager: it says $(swarm_state)" "docker swarm leave, or point DOCKER_HOST at a manager" ;;
    esac
    say "making the engine a swarm of this one node (docker swarm init); make clean undoes that"
    "${DOCKER[@]}" swarm init --advertise-addr 127.0.0.1 >/dev/null || die "make the engine a swarm"
    echo "made by Mainstay's set-up" | "${DOCKER[@]}" config create --label mainstay.setup=swarm $SWARM_MARK - >/dev/null
}

# Leaves the swarm that set-up made, when nobody else uses it.
leave_swarm() {
    [ "$(swarm_state)" = "active true" ] || return 0
    "${DOCKER[@]}" config inspect $SWARM_MARK >/dev/null 2>&1 || return 0
    local used
    used=$("${DOCKER[@]}" service ls -q; "${DOCKER[@]}" node ls -q | sed 1d; "${DOCKER[@]}" secret ls -q
        "${DOCKER[@]}" config ls --format '{{.Name}}' | grep -vx "$SWARM_MARK" || true
        "${DOCKER[@]}" network ls -q --filter driver=overlay --filter scope=swarm --format '{{.Name}}' | grep -vx ingress || true)
    if [ -n "$used" ]; then
        say "the swarm stays: something else is in it"
    elif [ "$dry_run" = yes ]; then
        say "would do: docker swarm leave --force"
    else
        "${DOCKER[@]}" swarm leave --force >/dev/null || say "could not do: docker swarm leave --force"
    fi
}
