# SPDX-License-Identifier: MIT OR Apache-2.0

"""Did a kernel complain?"""

import re

import channel
from cli import Failure

COMPLAINTS = re.compile(
    r"""
      \bBUG\b | \bWARNING:\ | \bOops\b | cut\ here | [Kk]ernel\ panic | general\ protection\ fault
    | unable\ to\ handle | Unable\ to\ handle | invalid\ opcode | divide\ error | double\ fault
    | blocked\ for\ more\ than | rcu.*\bstall | detected\ stalls | RCU\ Stall | RCU\ used\ illegally
    | soft\ lockup | hard\ LOCKUP | scheduling\ while\ atomic | sleeping\ function\ called
    | \bKASAN\b | \bKFENCE\b | \bKCSAN\b | \bUBSAN\b | kmemleak | memory\ leak
    | refcount_t: | list_(add|del)\ corruption | Bad\ page | Bad\ rss-counter | corrupt
    | Redzone | Poison\ overwritten | Object\ already\ free | Wrong\ object\ count | Objects\ remaining
    | possible\ (circular|recursive)\ locking | page\ allocation\ failure | unregister_netdevice:\ waiting
    """,
    re.VERBOSE,
)
INNOCENT = re.compile(
    r"""
      [Cc]ommand\ line:
    | kfence:\ initialized
    """,
    re.VERBOSE,
)

UNSIGNED_OUT_OF_TREE = 1 << 12 | 1 << 13

TIMEOUT_S = 30


def complaints(path):
    """The lines of a console log in which the kernel complains."""
    with open(path, errors="replace") as file:
        return [line.rstrip() for line in file if COMPLAINTS.search(line) and not INNOCENT.search(line)]


def taint(cluster, node):
    """What is wrong with a node's taint, or None."""
    script = "cat /proc/sys/kernel/tainted; grep -c '^ssi ' /proc/modules"
    status, out, _ = channel.capture(cluster.path(node), ["sh", "-c", script], timeout=TIMEOUT_S)
    value, loaded = (int(word) for word in out.split())
    wanted = {UNSIGNED_OUT_OF_TREE} if loaded else {UNSIGNED_OUT_OF_TREE, 0}
    return None if value in wanted else f"the kernel's taint is {value}, not {max(wanted)}"


def check(cluster):
    """Prints what is wrong; returns the exit status."""
    bad = 0
    for node in cluster.nodes:
        found = complaints(cluster.path(node, "console.log"))
        if cluster.alive(node) and not cluster.frozen(node):
            try:
                found += filter(None, [taint(cluster, node)])
            except Failure as error:
                found.append(f"its taint cannot be read: {error}")
        for line in found:
            print(f"n{node}: {line}")
        bad += len(found)
    if bad:
        print(f"{bad} complaints: vm/cluster console NODE names the whole log")
    return 1 if bad else 0
