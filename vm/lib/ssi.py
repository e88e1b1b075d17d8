# SPDX-License-Identifier: MIT OR Apache-2.0

"""Module and daemon on the nodes of a cluster of VMs: all that vm/ knows about either."""

import json
import os
import time

import channel
from cli import Failure

READY_TIMEOUT_S = 120

NOT_RUNNING = 3
"""Exit status of ssictl when the daemon, or another node, is not there."""

DEAD_AFTER_S = 10
"""Emulated machines are slower than others: nodes have twice the default time to show that they live."""

DEAD_AFTER_SYSTEMD_S = 20
"""With systemd a daemon is started again while it may be silent, which takes seconds on a host that is busy."""

WATCHDOG = """mkdir -p /etc/systemd/system/ssid.service.d
printf '[Service]\\nWatchdogSec=6\\n' >/etc/systemd/system/ssid.service.d/emulated.conf"""
"""Twice the time of the unit, too."""

PROGRAMS = {"ssi.ko": "/ssi/ssi.ko", "ssid": "/usr/sbin/ssid", "ssictl": "/usr/bin/ssictl"}
"""What a node needs, and where it goes."""

UNIT = os.path.realpath(os.path.join(os.path.dirname(__file__), "../../daemon/ssid.service"))


def is_built(directory):
    """Whether everything is there that a node needs."""
    return all(os.path.exists(os.path.join(directory, name)) for name in PROGRAMS)


def in_node(cluster, node, *words, timeout=60):
    """Runs a command in a node; returns its output."""
    status, out, err = channel.capture(cluster.path(node), words, timeout=timeout)
    if status != 0:
        raise Failure(f"n{node}: {' '.join(words)} failed with {status}: {(err or out).strip()}")
    return out


def install(cluster, node):
    """Copies module and programs into a node."""
    directory = cluster.path(node)
    for name, path in PROGRAMS.items():
        if channel.push(directory, os.path.join(cluster.config["programs"], name), path) != 0:
            raise Failure(f"n{node}: {name} cannot be copied")
    if cluster.config["systemd"]:
        if channel.push(directory, UNIT, "/etc/systemd/system/ssid.service") != 0:
            raise Failure(f"n{node}: the unit cannot be copied")
        in_node(cluster, node, "sh", "-c", WATCHDOG)
        in_node(cluster, node, "systemctl", "enable", "ssid")


def start_ssi(cluster, node):
    """Loads the module and starts the daemon, as an operator would."""
    in_node(cluster, node, "insmod", "/ssi/ssi.ko")
    dead_after_s = DEAD_AFTER_SYSTEMD_S if cluster.config["systemd"] else DEAD_AFTER_S
    config = [f"peer_dead_after_s = {dead_after_s}"]
    if cluster.config["plain"]:
        config.append("plain_links = true")
    lines = "\n".join(config)
    in_node(cluster, node, "sh", "-c", f"mkdir -p /etc/ssid && echo '{lines}' >/etc/ssid/ssid.toml")
    if cluster.config["systemd"]:
        in_node(cluster, node, "systemctl", "start", "ssid", timeout=READY_TIMEOUT_S)
        return
    # A session of its own, and no stream of ours, so that it outlives the command that starts it.
    start = "exec setsid ssid </dev/null >>/var/log/ssid.log 2>&1 &"
    in_node(cluster, node, "sh", "-c", start)


def form(cluster):
    """Founds a cluster on the first node and has the others join it, one after the other: so each has its number."""
    print("n1: ssictl cluster init", flush=True)
    line = json.loads(ssictl(cluster, 1, "cluster", "init", "--addr", "10.77.0.1", "-o", "json"))
    for node in cluster.nodes[1:]:
        print(f"n{node}: ssictl node join {line['addr']} --token ... --ca-hash ...", flush=True)
        ssictl(cluster, node, "node", "join", line["addr"], "--token", line["token"], "--ca-hash", line["ca_hash"])


def ssictl(cluster, node, *words):
    """Runs ssictl in a node once its daemon is there; returns its output."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        status, out, err = channel.capture(cluster.path(node), ["ssictl", *words], timeout=READY_TIMEOUT_S)
        if status == 0:
            return out
        if status != NOT_RUNNING or time.monotonic() > deadline:
            raise Failure(f"n{node}: ssictl {' '.join(words[:2])}: {(err or out).strip()}\n{log(cluster, node)}")
        time.sleep(0.1)


def log(cluster, node):
    """The end of the daemon's log."""
    tail = ["tail", "-n", "15", "/var/log/ssid.log"]
    if cluster.config["systemd"]:
        tail = ["journalctl", "-u", "ssid", "-n", "15", "--no-pager"]
    return channel.capture(cluster.path(node), tail)[1]


def wait_until_ready(cluster, *only):
    """Waits until the nodes, or those named, see every node with power; or serve, if they are in no cluster."""
    if not cluster.config["form"]:
        for node in only or cluster.nodes:
            ssictl(cluster, node, "version")
        return
    deadline = time.monotonic() + READY_TIMEOUT_S
    for node in only or cluster.nodes:
        while True:
            wanted = sum(cluster.alive(other) for other in cluster.nodes)
            status, out, err = channel.capture(cluster.path(node), ["ssictl", "node", "ls", "-o", "json"])
            if status == 0 and present(out) >= wanted or "no-cluster" in out:
                break
            if time.monotonic() > deadline:
                raise Failure(f"n{node}: the cluster does not form: {(err or out).strip()}\n{log(cluster, node)}")
            time.sleep(0.1)


def present(text):
    """How many nodes are there, going by what `ssictl node ls -o json` prints."""
    return sum(node["state"] in ("self", "up") for node in json.loads(text))
