# A container engine that answers: found, else installed from Debian's packages and started. Sourced by prepare.sh.

# How set-up itself calls the engine; through sudo for a user who may not open its socket yet.
DOCKER=(docker)

engine_answers() { command -v docker >/dev/null && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# It may run and only not be open to this user.
closed_to_us() { [ "$(id -u)" != 0 ] && [ -S /var/run/docker.sock ] && ! [ -w /var/run/docker.sock ]; }

ensure_engine() {
    engine_answers && return 0
    if [ -n "${DOCKER_HOST:-}" ]; then
        die "reach the container engine at $DOCKER_HOST" "start it, or unset DOCKER_HOST to use the one on this machine"
    fi
    install_packages "$ENGINE_PACKAGES"
    if closed_to_us; then as_root docker version >/dev/null 2>&1 || start_engine; else engine_answers || start_engine; fi
    if closed_to_us; then join_docker_group; fi
    "${DOCKER[@]}" version >/dev/null || die "reach the container engine" "docker version shows why"
}

start_engine() {
    say "starting the Docker engine"
    if [ -d /run/systemd/system ]; then
        as_root systemctl start docker || die "start Docker" "journalctl -u docker shows why"
    else
        as_root bash "$here/start-dockerd.sh"
    fi
}

# Docker's own way to let a person use the engine. Membership counts from the next login on; with_engine bridges that.
join_docker_group() {
    DOCKER=(as_root docker)
    if ! id -nG "$(id -un)" | tr ' ' '\n' | grep -qx docker; then
        say "adding $(id -un) to the group 'docker', which may use the engine (that is as much as root on this machine)"
        as_root usermod -aG docker "$(id -un)"
    fi
}

# Runs a command that needs the engine, with the group `docker` when this login does not have it yet.
with_engine() {
    if engine_answers || [ "$(id -u)" = 0 ] || ! command -v sg >/dev/null || ! getent group docker >/dev/null; then
        exec "$@"
    fi
    local line
    printf -v line '%q ' "$@"
    exec sg docker -c "$line"
}
