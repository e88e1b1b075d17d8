# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
#
# What tests/run, tests/demo and tests/bench share. Sourced, never run.

set -euo pipefail
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# prepare - compiles the test programs and what runs them.
prepare() {
    "$TOP/tests/guest/build"
    (cd "$TOP" && vm/rust cargo build --quiet --locked --package ssi-tests)
    export PROGRAMS=$TOP/target/x86_64-unknown-linux-gnu/debug
}

# with_cluster COMMAND... - runs a command with a cluster name of its own, which is taken down however it ends.
with_cluster() {
    export CLUSTER=${CLUSTER:-test$$}
    [ -n "${KEEP:-}" ] || trap '"$TOP/vm/cluster" down >/dev/null 2>&1 || true' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    "$@"
}
