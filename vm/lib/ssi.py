# SPDX-License-Identifier: MIT OR Apache-2.0

"""Module and daemon on the nodes of a cluster of VMs: all that vm/ knows about either."""

import json
import os
import subprocess
import time

import channel
from cli import Failure

READY_TIMEOUT_S = 120

CONFIG = """\
node = {node}
ca = "/etc/ssid/ca.pem"
cert = "/etc/ssid/node.pem"
key = "/etc/ssid/node.key"
"""
CONFIG_NODE = """
[[nodes]]
id = {node}
name = "n{node}"
addr = "10.77.0.{node}"
"""


PROGRAMS = {"ssi.ko": "/ssi/ssi.ko", "ssid": "/usr/sbin/ssid", "ssictl": "/usr/bin/ssictl"}
"""What a node needs, and where it goes."""


def is_built(directory):
    """Whether everything is there that a node needs."""
    return all(os.path.exists(os.path.join(directory, name)) for name in PROGRAMS)


def tool(cluster, *words):
    """Runs the cluster's ssictl on this machine."""
    line = [os.path.join(cluster.config["programs"], "ssictl"), *words]
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(line)} does not end") from None
    if done.returncode != 0:
        raise Failure(f"{' '.join(line)} failed: {done.stderr.strip()}")


def in_node(cluster, node, *words, timeout=60):
    """Runs a command in a node; returns its output."""
    status, out, err = channel.capture(cluster.path(node), words, timeout=timeout)
    if status != 0:
        raise Failure(f"n{node}: {' '.join(words)} failed with {status}: {(err or out).strip()}")
    return out


def prepare(cluster):
    """Makes what all nodes share: the cluster's authority, and each node's certificate and configuration."""
    pki = os.path.join(cluster.state, "pki")
    tool(cluster, "pki", "init", "--dir", pki)
    for node in cluster.nodes:
        out = cluster.path(node, "etc")
        tool(cluster, "pki", "issue", "--dir", pki, "--node", str(node), "--addr", f"10.77.0.{node}", "--out", out)
        with open(os.path.join(out, "ssid.toml"), "w") as file:
            file.write(CONFIG.format(node=node))
            if cluster.config["plain"]:
                file.write("plain_links = true\n")
            file.writelines(CONFIG_NODE.format(node=other) for other in cluster.nodes)


def install(cluster, node):
    """Copies module, programs and what `prepare` has made into a node."""
    directory = cluster.path(node)
    for name, path in PROGRAMS.items():
        if channel.push(directory, os.path.join(cluster.config["programs"], name), path) != 0:
            raise Failure(f"n{node}: {name} cannot be copied")
    etc = cluster.path(node, "etc")
    for name in os.listdir(etc):
        if channel.push(directory, os.path.join(etc, name), f"/etc/ssid/{name}") != 0:
            raise Failure(f"n{node}: {name} cannot be copied")


def start_ssi(cluster, node):
    """Loads the module and starts the daemon, as an operator would."""
    in_node(cluster, node, "insmod", "/ssi/ssi.ko")
    # A session of its own, and no stream of ours, so that it outlives the command that starts it.
    start = "exec setsid ssid --config /etc/ssid/ssid.toml </dev/null >>/var/log/ssid.log 2>&1 &"
    in_node(cluster, node, "sh", "-c", start)


def wait_until_ready(cluster, *only):
    """Waits until the nodes, or those named, see every node with power."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    for node in only or cluster.nodes:
        while True:
            wanted = sum(cluster.alive(other) for other in cluster.nodes)
            status, out, err = channel.capture(cluster.path(node), ["ssictl", "node", "ls", "-o", "json"])
            if status == 0 and present(out) >= wanted:
                break
            if time.monotonic() > deadline:
                _, log, _ = channel.capture(cluster.path(node), ["tail", "-n", "15", "/var/log/ssid.log"])
                raise Failure(f"n{node}: the cluster does not form: {(err or out).strip()}\n{log}")
            time.sleep(0.1)


def present(text):
    """How many nodes are there, going by what `ssictl node ls -o json` prints."""
    return sum(node["state"] in ("self", "up") for node in json.loads(text))
