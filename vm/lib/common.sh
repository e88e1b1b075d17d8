# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
#
# What the scripts of vm/ share: the cache, host packages, messages, and running things in a build root.
# Sourced, never run.
#
# The cache lies outside the tree. Every entry is a directory KIND-KEY whose KEY is a hash of all it was made
# from; it is built under another name and renamed, so an entry that exists is complete.

set -euo pipefail
shopt -s inherit_errexit

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Used by those who source this.
# shellcheck disable=SC2034
RELEASE=$(<"$TOP/vm/release")
UNUM_CACHE=${UNUM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/unum}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

say() { echo "unum: $*" >&2; }

die() {
    echo "unum: $*" >&2
    exit 1
}

need_root() { [ "$(id -u)" = 0 ] || die "run this as root: it makes Debian trees and mounts"; }

# host_packages PACKAGE... - installs those that are missing.
host_packages() {
    local missing=() package
    for package; do
        [ "$(dpkg-query -Wf '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    need_root
    say "installing on this machine: ${missing[*]}"
    (
        flock 9
        apt-get -qq update && apt-get -qq --no-install-recommends install "${missing[@]}" >/dev/null
    ) 9>"$UNUM_CACHE/apt.lock" >&2 || die "apt-get failed: look at its lines above, then run the same command again"
}

# mirror - the Debian mirror this machine uses itself.
mirror() {
    local site
    site=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1)
    echo "${site:-http://deb.debian.org/debian}"
}

# key_of FILE... -- WORD... - the hash of files and words.
key_of() {
    {
        while [ "$1" != -- ]; do
            cat "$1"
            shift
        done
        printf '%s\n' "$@"
    } | sha256sum | cut -c 1-16
}

# cached KIND KEY BUILDER - prints the path of the entry; calls `BUILDER DIRECTORY` if it must be made first.
cached() {
    local dir=$UNUM_CACHE/$1-$2
    if [ ! -d "$dir" ]; then
        need_root
        (
            flock 9
            if [ ! -d "$dir" ]; then
                rm -rf "$dir.part"
                "$3" "$dir.part" >&2
                mv "$dir.part" "$dir"
            fi
        ) 9>"$dir.lock"
    fi
    echo "$dir"
}

# inside ROOT [--ro SOURCE:TARGET | --rw SOURCE:TARGET]... -- COMMAND...
# Runs a command in a root tree with /proc, /dev and the given directories bound in. The mounts are made in a
# mount name space of their own, so that nothing is left behind however this ends.
inside() {
    unshare --mount --propagation private bash -ec '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        while [ "$1" != -- ]; do
            mount --bind "${2%:*}" "$root${2#*:}"
            if [ "$1" = --ro ]; then mount -o remount,bind,ro "$root${2#*:}"; fi
            shift 2
        done
        shift
        exec chroot "$root" "$@"
    ' inside "$@"
}

mkdir -p "$UNUM_CACHE"
