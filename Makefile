# SPDX-License-Identifier: MIT OR Apache-2.0
#
# The front door. Every target does all of its own set-up; expensive results lie in a cache outside the tree
# (UNUM_CACHE, default ~/.cache/unum). `make BENCH=1 all` builds into build/bench/ what only measurements and
# control tests may have.

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash

CARGO := vm/rust cargo
TARGET := target/x86_64-unknown-linux-gnu
BUILD := build$(if $(BENCH),/bench)
USER := ssid ssictl $(if $(BENCH),,agent switch)

.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

all: kmod user ## build the module, the daemon and the tools into build/

kmod: ## build build/ssi.ko for the stock kernel
	@vm/kmod $(if $(BENCH),--bench)

user: ## build the programs of user space, static
	@echo "unum: building the programs of user space" >&2
	@$(CARGO) build --release --locked --package ssid --package ssictl --package unum-vm \
		$(if $(BENCH),--features ssid/bench --target-dir target/bench)
	@mkdir -p $(BUILD)
	@cd target/$(if $(BENCH),bench/)x86_64-unknown-linux-gnu/release && install -C -t $(CURDIR)/$(BUILD) $(USER)

man: user ## write the manual pages into build/man/
	@$(BUILD)/ssid --man build/man && $(BUILD)/ssictl man build/man && ls build/man

vm: ## build what VMs boot from
	@$(CARGO) build --release --locked --package unum-vm
	@mkdir -p build
	@cd $(TARGET)/release && install -C -t $(CURDIR)/build agent switch
	@vm/image build/agent >/dev/null

check: lint host-test ## formats, lints, host tests, licences, symbols

lint: ## all of that but the tests
	@vm/kmod --strict
	@echo "unum: formats" >&2
	@$(CARGO) fmt --all --check
	@$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	@vm/rust rustfmt --check --edition 2021 kmod/src/ssi_main.rs
	@vm/rust rustfmt --check --edition 2024 daemon/stub/stub.rs
	@.ci/lint
	@echo "unum: lints" >&2
	@$(CARGO) clippy --quiet --workspace --all-targets --locked -- -D warnings
	@echo "unum: licences and bans" >&2
	@vm/cargo-deny --log-level error check --hide-inclusion-graph licenses bans sources

host-test: ## the tests that need no VM
	@echo "unum: host tests" >&2
	@$(CARGO) test --quiet --workspace --locked

TESTS_IN = $$(grep -v '^[[:punct:]]' $(1))

test: all vm host-test ## the tests that are known to pass; the last line counts those in VMs. UNTIL=SECONDS since 1970: when to end
	@tests/run $(call TESTS_IN,tests/default) --then $(if $(UNTIL),--until $(UNTIL)) $(call TESTS_IN,tests/more)

test-all: all vm host-test ## all tests there are
	@$(MAKE) BENCH=1 all
	@tests/run

# Without a number of its own each kind has as many seeds as it does in a few hours.
soak: soak-sim soak-vm ## all simulations, and all rounds in virtual machines: some nine hours

soak-sim: ## simulations: SEEDS (10000) of storms, LINEAR_SEEDS (500) of clients with 10,000 critical sections, SIM_SEEDS (200) of who seems alive
	@STORM_SEEDS=$(or $(SEEDS),10000) LINEAR_SEEDS=$(or $(LINEAR_SEEDS),500) LINEAR_SECTIONS=10000 SIM_SEEDS=$(or $(SIM_SEEDS),200) \
		RUSTFLAGS='--cfg tokio_unstable -C target-feature=+crt-static' \
		CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_TARGET_DIR=target/soak \
		vm/rust cargo test -p ssid --locked --lib -- --include-ignored --nocapture storm linear swim::sim

soak-vm: all vm ## rounds of kill, freeze and cut of each role in virtual machines: ROUNDS (50) of each
	@ROUNDS=$(or $(ROUNDS),50) tests/run 'rounds-*'

fuzz: ## look for bytes from outside that do harm, each target for FUZZ_SECONDS (600)
	@fuzz/run $(TARGETS)

bench: all vm ## the figures of Documentation/
	@$(MAKE) BENCH=1 all
	@tests/bench
	@vm/rust cargo test --release -p ssid --locked --lib -- --ignored --nocapture figure_

demo: all vm ## a program moves between three nodes while it runs
	@tests/demo

# What cargo does not see has a root of its own.
fmt: ## format everything
	@$(CARGO) fmt --all
	@$(CARGO) fmt --manifest-path fuzz/Cargo.toml
	@vm/rust rustfmt --edition 2021 kmod/src/ssi_main.rs
	@vm/rust rustfmt --edition 2024 daemon/stub/stub.rs

clean: ## remove what was built in the tree; the cache stays
	@rm -rf build target

.PHONY: help all kmod user man vm check host-test test test-all soak soak-sim soak-vm fuzz bench demo fmt clean
