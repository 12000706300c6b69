# Cargo's companions for the gate, built once into the cache. Sourced by prepare.sh.

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
