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

# with_cluster COMMAND... - runs a command with a cluster name of its own, which is taken down however it ends. Its
# logs are kept if it fails.
with_cluster() {
    export CLUSTER=${CLUSTER:-test$$}
    [ -n "${KEEP:-}" ] || trap 'clean_up $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    "$@"
}

clean_up() {
    "$TOP/vm/cluster" down >/dev/null 2>&1 || true
    local logs=${XDG_RUNTIME_DIR:-/run}/unum/$CLUSTER.last
    if [ "$1" = 0 ]; then
        rm -rf "$logs" "${logs%.last}.lock"
    elif [ -d "$logs" ]; then
        echo "logs of the last cluster: $logs" >&2
    fi
}
