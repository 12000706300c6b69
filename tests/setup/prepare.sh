#!/usr/bin/env bash
# Brings this machine to where Mainstay can be built, tried and tested, and starts nothing that already runs.
#
#   tests/setup/prepare.sh build                 what the compiler needs
#   tests/setup/prepare.sh engine                build + a container engine that answers
#   tests/setup/prepare.sh demo [FOLDER]         engine + base images, and the demo's project in FOLDER
#   tests/setup/prepare.sh demo-deploy           engine + base images, a swarm of one node, and what is deployed there
#   tests/setup/prepare.sh demo-restore          build + PostgreSQL's programs, none of them started
#   tests/setup/prepare.sh test [FOLDER]         demo + the programs that tests start, and cargo's companions
#   tests/setup/prepare.sh bench [FOLDER]        test + what recovery is measured beside
#   tests/setup/prepare.sh soak [FOLDER]         test + PostgreSQL in every version that is supported
#   tests/setup/prepare.sh run -- COMMAND…       COMMAND with access to the engine (a fresh `docker` group counts)
#
# Safe to run twice and from several terminals: what is there is left alone, and one at a time works on the machine.
# Root is asked for (through sudo) only for a step that needs it, and that step is named first.

# ---- Debian packages, by what wants them. A line: the program that shows it is there, then the package. ----------

BUILD_PACKAGES="
cc          gcc
git         git
make        make
/usr/include/stdio.h  libc6-dev
/etc/ssl/certs/ca-certificates.crt  ca-certificates
"
ENGINE_PACKAGES="
dockerd     docker.io
docker      docker.io
iptables    iptables
"
# Only where no registry answers, to make base images from Debian's own packages.
IMAGE_PACKAGES="
debootstrap debootstrap
"
DEMO_DEPLOY_PACKAGES="
curl        curl
/usr/bin/python3  python3
/usr/lib/python3/dist-packages/aiosmtpd/smtp.py  python3-aiosmtpd
"
DEMO_RESTORE_PACKAGES="
/usr/lib/postgresql/15/bin/postgres  postgresql-15
/usr/bin/python3  python3
"
# Programs that tests start themselves, on loopback. Services they would start at boot are kept off.
TEST_PACKAGES="
sshd        openssh-server
ssh         openssh-client
docker-registry docker-registry
htpasswd    apache2-utils
git         git
ldd         libc-bin
prometheus  prometheus
docker-compose docker-compose
openssl     openssl
/usr/lib/python3/dist-packages/aiosmtpd/smtp.py  python3-aiosmtpd
ip          iproute2
/usr/lib/postgresql/15/bin/postgres  postgresql-15
/usr/share/doc/python3-venv/copyright  python3-venv
age         age
zstd        zstd
setpriv     util-linux
"
# What recovery is measured beside.
BENCH_PACKAGES="
pgbackrest  pgbackrest
"
# Only where a PostgreSQL that Debian has not is missing, to fetch and unpack it.
POSTGRES_PACKAGES="
npm         npm
/usr/bin/python3  python3
"

# -------------------------------------------------------------------------------------------------------------------

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/setup/lib.sh
. "$here/lib.sh"
. "$here/engine.sh"
. "$here/images.sh"
. "$here/sample.sh"
. "$here/swarm.sh"
. "$here/tools.sh"

what=${1:-}
case $what in
build)
    locked install_packages "$BUILD_PACKAGES"
    ;;
engine)
    locked install_packages "$BUILD_PACKAGES"
    locked ensure_engine
    ;;
demo)
    locked install_packages "$BUILD_PACKAGES"
    locked ensure_engine
    locked ensure_images
    locked ensure_demo_project "${2:-$(target_dir)/demo-project}"
    ;;
demo-deploy)
    locked install_packages "$BUILD_PACKAGES$DEMO_DEPLOY_PACKAGES"
    locked ensure_engine
    locked ensure_images
    locked ensure_sample_images
    locked ensure_swarm
    ;;
demo-restore)
    locked install_packages "$BUILD_PACKAGES$DEMO_RESTORE_PACKAGES"
    ;;
test | soak | bench)
    locked install_packages "$BUILD_PACKAGES$TEST_PACKAGES"
    [ "$what" != bench ] || locked install_packages "$BENCH_PACKAGES"
    locked ensure_engine
    locked ensure_images
    locked ensure_demo_project "${2:-$(target_dir)/demo-project}"
    locked ensure_sample_images
    locked ensure_swarm
    locked ensure_cargo_tools
    locked ensure_s3_server
    locked ensure_postgres $POSTGRES_GATE
    [ "$what" != soak ] || locked ensure_postgres $POSTGRES_SOAK
    ;;
run)
    shift
    [ "${1:-}" = -- ] && shift
    with_engine "$@"
    ;;
*)
    sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
