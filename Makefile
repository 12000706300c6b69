# make demo         see it work: a daemon, a repository, a push that passes and one that fails
# make demo-deploy  see staged deploys: a yes by mail, and a bad version that goes back by itself under load
# make demo-restore see a database come back: a dropped table, then a lost server, from the repository and one key
# make test         the gate: format, lints, docs, licences, every test on real parts, the built binary
#
# All bring the machine to where they can run (tests/setup/prepare.sh) and may be repeated or run at once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
export LIBZ_SYS_STATIC := 1
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mainstay
# Cargo's companions built by the set-up; the user's own come first.
export PATH := $(PATH):$(HOME)/.cargo/bin:$(CACHE)/tools/bin:$(CURDIR)/target/cache/tools/bin

DEV := $(CARGO_TARGET_DIR)/debug/mainstay
RELEASE := $(CARGO_TARGET_DIR)/release/mainstay
PREPARE := tests/setup/prepare.sh

# Where `make deploy` puts things; DESTDIR goes in front, for packages.
PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(if $(filter /usr,$(PREFIX)),/lib/systemd/system,/etc/systemd/system)

.PHONY: build demo demo-deploy demo-restore test bench soak conformance deploy clean help lint docs licences advisories tests binary release-binary

help:
	@sed -n '1,4s/^# //p' Makefile
	@echo 'make build | bench | soak | conformance ENGINE=unix:///… | deploy PREFIX=… DESTDIR=… | clean | advisories'

# ---- build ----------------------------------------------------------------------------------------------------------

build:
	$(PREPARE) build
	cargo build --release --locked
	@echo "built $(RELEASE)"

# ---- demo -----------------------------------------------------------------------------------------------------------

# The development build: from nothing on two cores it takes a fraction of the optimised one's time, and the demo's time
# is the engine's and the compiler's in the containers, not ours. The images are made meanwhile.
demo:
	@$(PREPARE) engine
	@$(PREPARE) demo "$(CARGO_TARGET_DIR)/demo-project" & images=$$!; \
	    cargo build --locked || { wait $$images || true; exit 1; }; \
	    wait $$images
	@$(PREPARE) run -- $(DEV) demo --project "$(CARGO_TARGET_DIR)/demo-project"

demo-deploy:
	@$(PREPARE) engine
	@$(PREPARE) demo-deploy & images=$$!; \
	    cargo build --locked || { wait $$images || true; exit 1; }; \
	    wait $$images
	@$(PREPARE) run -- tests/setup/demo-deploy.sh $(DEV)

# No container: the servers are plain processes of this machine, as they are on a database host.
demo-restore:
	@$(PREPARE) demo-restore
	@cargo build --locked
	@tests/setup/demo-restore.sh $(DEV)

# ---- test -----------------------------------------------------------------------------------------------------------

# Cheap and telling first. Lints and docs share their metadata, tests and the binary share their objects.
test:
	@$(PREPARE) test "$(CARGO_TARGET_DIR)/demo-project"; echo "-- set-up: $$SECONDS s"
	@$(call stage,lint)
	@$(call stage,docs)
	@$(call stage,licences)
	@$(call stage,binary)
	@$(call stage,tests)
	@echo "all of the gate passed"

# One part of the gate, and how long it took.
stage = $(MAKE) --no-print-directory $(1); echo "-- $(1): $$SECONDS s"

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

licences:
	cargo deny --locked check licenses bans sources

# Needs the advisory database from the network, so it is not part of the gate.
advisories:
	cargo deny --locked check advisories

# Examples in the documentation first, which nextest does not know.
tests:
	cargo test --locked --doc --quiet
	cargo build --locked --quiet --features failpoints --example mainstay-failpoints
	$(PREPARE) run -- cargo nextest run --locked --no-fail-fast

binary:
	cargo build --locked
	tests/setup/check-binary.sh $(DEV)

# The same questions to what is shipped.
release-binary: build
	tests/setup/check-binary.sh $(RELEASE)

# ---- measuring ------------------------------------------------------------------------------------------------------

# The budgets of docs/benchmarks.md on the optimised binary, each against its peer in the same minutes: half an hour.
# make bench FIGURES="push ready" measures those alone, FIGURES=--quick all with few repetitions.
bench:
	$(PREPARE) bench "$(CARGO_TARGET_DIR)/demo-project"
	$(PREPARE) run -- cargo bench --locked --bench budgets -- $(FIGURES)

# make soak MOMENTS=500 kills at more random moments than the usual 200.
soak:
	$(PREPARE) soak "$(CARGO_TARGET_DIR)/demo-project"
	$(PREPARE) run -- tests/soak/run.sh $(MOMENTS)

# The suite that every engine has to pass, on the engine you name.
conformance:
	$(PREPARE) build
	@[ -n "$(ENGINE)" ] || { echo 'usage: make conformance ENGINE=unix:///var/run/docker.sock' >&2; exit 2; }
	DOCKER_HOST="$(ENGINE)" $(PREPARE) test "$(CARGO_TARGET_DIR)/demo-project"
	DOCKER_HOST="$(ENGINE)" MAINSTAY_CONFORMANCE_ENGINE="$(ENGINE)" $(PREPARE) run -- cargo nextest run --locked --no-fail-fast -E 'test(/^conformance::/)'

# ---- install and remove ---------------------------------------------------------------------------------------------

deploy: build
	tests/setup/install.sh $(RELEASE) "$(DESTDIR)" "$(PREFIX)" "$(UNITDIR)"

# make clean DRY_RUN=1 only says what would go.
clean:
	tests/setup/clean.sh $(if $(DRY_RUN),--dry-run)
