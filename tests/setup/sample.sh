# The sample application that tests deploy, in its good and bad versions, the proxy before it, and a PostgreSQL that tests
# restore into. Made from sources in `sample/`, anew when those changed: the label mainstay.sample holds their digest. Sourced by prepare.sh.

SAMPLE_VERSIONS="one two three crashes sick"
SAMPLE_PROXY=mainstay-test/proxy:1
SAMPLE_POSTGRES=mainstay-test/postgres:15

sample_images() {
    local version
    for version in $SAMPLE_VERSIONS; do echo "mainstay-test/app:$version"; done
    echo $SAMPLE_PROXY
    echo $SAMPLE_POSTGRES
}

sample_digest() { (cd "$here/sample/$1" && cat -- * | sha256sum | cut -c1-16); }

# True when the image is there and made from this source.
have_sample() { [ "$("${DOCKER[@]}" image inspect -f '{{index .Config.Labels "mainstay.sample"}}' "$1" 2>/dev/null)" = "$2" ]; }

ensure_sample_images() {
    local version behaviour digest missing=no
    digest=$(sample_digest app)
    for version in $SAMPLE_VERSIONS; do have_sample "mainstay-test/app:$version" "$digest" || missing=yes; done
    if [ $missing = yes ]; then
        say "making the sample application's images"
        local dir
        dir=$(mktemp -d)
        cp "$here/sample/app/"* "$dir"
        cc -static -O1 -pthread -o "$dir/app" "$dir/app.c" || { rm -rf "$dir"; die "compile the sample application"; }
        for version in $SAMPLE_VERSIONS; do
            case $version in crashes | sick) behaviour=$version ;; *) behaviour=good ;; esac
            build_sample "$dir" "mainstay-test/app:$version" "$digest" --build-arg "WORD=$version" --build-arg "BEHAVIOUR=$behaviour"
        done
        rm -rf "$dir"
    fi
    digest=$(sample_digest proxy)
    have_sample $SAMPLE_PROXY "$digest" || {
        say "making the sample proxy's image (nginx)"
        build_sample "$here/sample/proxy" $SAMPLE_PROXY "$digest" --build-arg "MIRROR=$(debian_mirror)"
    }
    digest=$(sample_digest postgres)
    have_sample $SAMPLE_POSTGRES "$digest" || {
        say "making the sample PostgreSQL's image (Debian's 15)"
        build_sample "$here/sample/postgres" $SAMPLE_POSTGRES "$digest" --build-arg "MIRROR=$(debian_mirror)"
    }
}

# build_sample FOLDER IMAGE DIGEST OPTION…
build_sample() {
    local folder=$1 image=$2 digest=$3 log name
    shift 3
    local args=("$@")
    for name in http_proxy https_proxy no_proxy; do
        if [ -n "${!name:-}" ]; then args+=(--build-arg "$name=${!name}"); fi
    done
    log=$(mktemp)
    # The builder that every engine and client has.
    if ! DOCKER_BUILDKIT=0 "${DOCKER[@]}" build --label mainstay.setup=test --label "mainstay.sample=$digest" "${args[@]}" \
        -t "$image" "$folder" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "build $image" "containers need to reach $(debian_mirror)"
    fi
    rm -f "$log"
}
