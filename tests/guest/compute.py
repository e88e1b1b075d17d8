#!/usr/bin/python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Computes a chain of numbers and prints one of every few thousand: "LINE n value".

Each value depends on all before it, so a reader who computes the same chain sees every lost, doubled or wrong
line. Ends when $GO.1 exists. The argument, if any, is the number of steps between lines.
"""

import os
import sys

value, line, go = 1, 0, os.environ["GO"]
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
print("READY", flush=True)
while not os.path.exists(go + ".1"):
    for _ in range(steps):
        value = (value * 6364136223846793005 + 1442695040888963407) % 2**64
    print(f"LINE {line} {value:016x}", flush=True)
    line += 1
print(f"LAST {line - 1}", flush=True)
sys.exit(33)
