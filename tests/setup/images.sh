# Images that users know by name: pulled where a registry answers, else made here from Debian's packages under the
# same names. Made ones carry the label mainstay.setup, by which `make clean` knows them. Sourced by prepare.sh.

DEMO_IMAGE=mainstay-demo/cc:1

have_image() { "${DOCKER[@]}" image inspect "$1" >/dev/null 2>&1; }

ensure_images() {
    have_image busybox:latest && have_image debian:12 && have_image alpine:3 && have_image "$DEMO_IMAGE" && return 0
    local registry=no
    # The smallest image tells whether a registry answers; 15 s are enough for its 2 MB on a slow line.
    if have_image busybox:latest && have_image debian:12 && have_image alpine:3; then
        :
    elif timeout 15 "${DOCKER[@]}" pull -q busybox:latest >/dev/null 2>&1; then
        registry=yes
    else
        say "no image registry answers: making the base images here"
    fi
    pull_or debian:12 $registry make_debian
    pull_or alpine:3 $registry make_busybox
    pull_or busybox:latest $registry make_busybox
    have_image "$DEMO_IMAGE" || make_demo_image
}

pull_or() {
    local image=$1 registry=$2 make=$3
    have_image "$image" && return 0
    if [ "$registry" = yes ]; then
        say "pulling $image"
        # 50 MB at most.
        timeout 300 "${DOCKER[@]}" pull -q "$image" >/dev/null && return 0
    fi
    say "making $image"
    $make "$image"
}

# The mirror this machine already uses, so that one behind a firewall is enough.
debian_mirror() {
    local uri=${MAINSTAY_DEBIAN_MIRROR:-}
    if [ -z "$uri" ] && command -v apt-get >/dev/null; then
        uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' 2>/dev/null | head -n 1)
    fi
    printf '%s\n' "${uri:-http://deb.debian.org/debian}"
}

# A minimal Debian from its own packages; about 30 s.
make_debian() {
    install_packages "$IMAGE_PACKAGES"
    local dir
    # Not under /tmp, which may be mounted without devices or programs.
    dir=$(as_root mktemp -d /var/tmp/mainstay-debian.XXXXXX)
    if ! as_root debootstrap --variant=minbase bookworm "$dir/root" "$(debian_mirror)" >"${TMPDIR:-/tmp}/mainstay-debootstrap.$$" 2>&1; then
        tail -n 5 "${TMPDIR:-/tmp}/mainstay-debootstrap.$$" >&2
        as_root rm -rf "$dir"
        die "make $1 with debootstrap" "it needs root and the mirror $(debian_mirror)"
    fi
    rm -f "${TMPDIR:-/tmp}/mainstay-debootstrap.$$"
    as_root rm -rf "$dir/root/var/cache/apt/archives" "$dir/root/var/lib/apt/lists"
    as_root mkdir -p "$dir/root/var/cache/apt/archives/partial" "$dir/root/var/lib/apt/lists/partial"
    # Without the PATH nothing is found in the container.
    if ! as_root tar -C "$dir/root" -c . | "${DOCKER[@]}" import \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'CMD ["bash"]' --change 'LABEL mainstay.setup=base' - "$1" >/dev/null; then
        as_root rm -rf "$dir"
        die "give $1 to the engine" "its own words stand above"
    fi
    as_root rm -rf "$dir"
}

# A 2 MB image with the usual small commands: Debian's static busybox and a link for each of its applets. As
# `alpine:3` it stands in for the real one: sh and the same commands, but no apk.
make_busybox() {
    local twin
    for twin in busybox:latest alpine:3; do
        if [ -n "$("${DOCKER[@]}" image ls -q --filter "reference=$twin" --filter label=mainstay.setup=base)" ]; then
            "${DOCKER[@]}" tag "$twin" "$1"
            return
        fi
    done
    "${DOCKER[@]}" run --rm --label mainstay.setup=build debian:12 sh -ec '
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq update >&2
        apt-get -qq install -y --no-install-recommends busybox-static >/dev/null 2>&1
        mkdir -p /r/bin /r/usr /r/etc /r/root /r/home /r/var /r/dev /r/proc /r/sys
        mkdir -m 1777 /r/tmp /r/var/tmp
        cp /bin/busybox /r/bin/
        for applet in $(/r/bin/busybox --list); do
            [ "$applet" = busybox ] || ln -s busybox "/r/bin/$applet"
        done
        ln -s bin /r/sbin && ln -s ../bin /r/usr/bin && ln -s ../bin /r/usr/sbin
        echo root:x:0:0:root:/root:/bin/sh >/r/etc/passwd
        echo nobody:x:65534:65534:nobody:/:/bin/false >>/r/etc/passwd
        printf "root:x:0:\nnogroup:x:65534:\n" >/r/etc/group
        tar -C /r -c .' | "${DOCKER[@]}" import --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'CMD ["sh"]' --change 'LABEL mainstay.setup=base' - "$1" >/dev/null
}

# gcc and make on Debian, with the source of the project that the demo builds.
make_demo_image() {
    say "building $DEMO_IMAGE (gcc, make, and the source of zlib)"
    local args=(--build-arg "MIRROR=$(debian_mirror)") name
    for name in http_proxy https_proxy no_proxy; do
        if [ -n "${!name:-}" ]; then args+=(--build-arg "$name=${!name}"); fi
    done
    local log
    log=$(mktemp)
    if ! "${DOCKER[@]}" build --label mainstay.setup=demo "${args[@]}" -t "$DEMO_IMAGE" - <"$root/pipelines/demo/Dockerfile" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "build $DEMO_IMAGE" "containers need to reach $(debian_mirror)"
    fi
    rm -f "$log"
}

# The project that `make demo` pushes: source/ is its first commit, break.patch its second.
ensure_demo_project() {
    local dir=$1 tmp
    mkdir -p "$(dirname "$dir")"
    tmp=$(mktemp -d "$dir.XXXXXX")
    mkdir "$tmp/source"
    "${DOCKER[@]}" run --rm --network none --label mainstay.setup=demo "$DEMO_IMAGE" tar -C /usr/src/zlib -c . |
        tar -C "$tmp/source" --no-same-owner -xf -
    mkdir "$tmp/source/.mainstay"
    cp "$root/pipelines/demo/zlib/build.yml" "$tmp/source/.mainstay/"
    cp "$root/pipelines/demo/zlib/break.patch" "$tmp/"
    # A demo may be reading it at this moment: the same content is left alone, other content is put beside it first.
    if diff -rq "$tmp" "$dir" >/dev/null 2>&1; then
        rm -rf "$tmp"
    else
        if [ -e "$dir" ]; then mv "$dir" "$tmp.old"; fi
        mv "$tmp" "$dir"
        rm -rf "$tmp.old"
    fi
}
