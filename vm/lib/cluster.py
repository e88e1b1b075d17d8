# SPDX-License-Identifier: MIT OR Apache-2.0

"""A cluster of VMs on this machine.

All that is known about it lies in one directory:

  cluster.json        what `up` was asked for, and the paths of kernel, initramfs and root image
  switch.pid, net/    the switch between the nodes: its control socket `ctl` and a socket for each node
  n0/                 the node a template is made from, for as long as that takes
  nK/                 node K: its disk, console.log, qemu.log, pid, qmp (QEMU's control socket), eP (its session ports)
"""

import concurrent.futures
import faulthandler
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time

import accel
import channel
import qmp
import ssi
from cli import Failure

TOP = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
BUILD = os.path.join(TOP, "build")

BOOT_TIMEOUT_S = 150
"""Nodes boot in seconds, but several checked ones on a busy host take their time."""
BOOT_ATTEMPTS = 3
"""Rarely an emulated machine stands still in the stock kernel's first second, with nothing of ours in it yet."""

START_TIMEOUT_S = 30
"""QEMU binds its sockets, or has read a template, within moments."""

CLOCK_SEEN_S = 1
CLOCK_OFF = 0.1
"""A node's clock is looked at for so long, and may be wrong by this part of it."""

LONG_S = 240
"""To boot and to form takes less; what takes longer says where it stands."""

DISK = "64M"
"""Of each node, for what must outlive a power cut: /var/lib/ssid."""

LOGS_KEPT_S = 24 * 3600
"""Tests name their clusters anew each time, so there would be ever more logs."""

TEMPLATE_KEPT_S = 3 * 24 * 3600
"""Templates are big, and every change of the agent makes new ones."""

CHECKERS = "slab_debug=FZPU page_poison=1 kfence.sample_interval=50 panic_on_warn=1 hung_task_panic=1"

SYSTEMD = "unum.systemd systemd.show_status=no"


def say(text):
    print(text, flush=True)


class Cluster:
    """The cluster whose directory is `state`; it need not exist yet."""

    def __init__(self, state):
        self.state = state
        self._config = None

    # What there is

    @property
    def config(self):
        """What `up` was asked for."""
        if self._config is None:
            try:
                with open(os.path.join(self.state, "cluster.json")) as file:
                    self._config = json.load(file)
            except FileNotFoundError:
                raise Failure(f"no cluster runs in {self.state}: vm/cluster up N starts one") from None
        return self._config

    @property
    def nodes(self):
        """The numbers of all nodes."""
        return range(1, self.config["nodes"] + 1)

    def path(self, node, *names):
        """A path in a node's directory."""
        return os.path.join(self.state, f"n{node}", *names)

    def pid(self, name):
        """The process whose PID is in a file of the directory, if it still runs and is the one meant."""
        try:
            with open(os.path.join(self.state, name)) as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return pid if os.fsencode(f"{self.state}/") in file.read() else None
        except (OSError, ValueError):
            return None

    def pids(self):
        """All processes that belong to the cluster."""
        names = ["switch.pid", *(f"{name}/pid" for name in os.listdir(self.state))]
        return [pid for name in names if (pid := self.pid(name))]

    def alive(self, node):
        """Whether a node has power."""
        return self.pid(f"n{node}/pid") is not None

    def frozen(self, node):
        """Whether a node is frozen."""
        return not qmp.command(self.path(node, "qmp"), "query-status")["running"]

    # Up and down

    def up(self, count, options):
        """Starts the switch and all nodes."""
        os.makedirs(os.path.dirname(self.state), exist_ok=True)
        with open(f"{self.state}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failure(f"the cluster in {self.state} is being started already") from None
            self.up_alone(count, options)

    def up_alone(self, count, options):
        """The same, while nobody else starts this cluster."""
        began = time.monotonic()
        if os.path.exists(self.state):
            if os.path.exists(os.path.join(self.state, "cluster.json")):
                raise Failure(f"a cluster runs in {self.state} already: vm/cluster down ends it")
            # What a broken `up` has left.
            self.down()
        for program in ("agent", "switch"):
            if not os.path.exists(os.path.join(BUILD, program)):
                raise Failure(f"build/{program} is not built: run make vm")
        line = [os.path.join(TOP, "vm/image"), os.path.join(BUILD, "agent")]
        if options["systemd"]:
            line.append("--systemd")
        images = subprocess.run(line, stdout=subprocess.PIPE, check=False)
        if images.returncode != 0:
            raise Failure("the VM image cannot be made: see the lines above")
        # Not before: the first image of a machine takes its time.
        faulthandler.dump_traceback_later(LONG_S, repeat=True)
        qemu, kernel, initramfs, root = images.stdout.decode().split()
        programs = os.path.join(BUILD, "bench") if options["bench"] else BUILD
        with_ssi = options["ssi"] and ssi.is_built(programs)
        if options["ssi"] and not with_ssi:
            say(f"note: {programs} lacks the module, ssid or ssictl (make all): the nodes only boot")

        os.makedirs(os.path.join(self.state, "net"), mode=0o700)
        self._config = {
            **options,
            "nodes": count,
            "ssi": with_ssi,
            "programs": programs,
            "qemu": qemu,
            "kernel": kernel,
            "initramfs": initramfs,
            "root": root,
            "accel": accel.choose(qemu, kernel, initramfs),
        }
        try:
            self.start_switch(count)
            if options["template"]:
                self._config["template"] = self.template()
            for node in self.nodes:
                os.mkdir(self.path(node))
                self.power_on(node)
            with open(os.path.join(self.state, "cluster.json"), "w") as file:
                json.dump(self._config, file, indent=2)
            self.on_all(self.boot)
            say(f"{count} nodes booted in {time.monotonic() - began:.1f} s")
            if with_ssi:
                self.on_all(lambda node: ssi.start_ssi(self, node))
                if options["form"]:
                    ssi.form(self)
                ssi.wait_until_ready(self)
                say(f"the cluster is up after {time.monotonic() - began:.1f} s")
        except BaseException:
            # Nobody could know what half a cluster is; its logs are kept.
            self.down()
            raise

    def on_all(self, action):
        """Does something on all nodes at a time. A failure of one is the end of all."""
        with concurrent.futures.ThreadPoolExecutor(len(self.nodes)) as pool:
            try:
                for result in concurrent.futures.as_completed([pool.submit(action, node) for node in self.nodes]):
                    result.result()
            except BaseException:
                # Or the others would go on waiting for theirs.
                self.end(self.pids())
                raise

    def start_switch(self, count):
        net = os.path.join(self.state, "net")
        with open(os.path.join(self.state, "switch.log"), "wb") as log:
            process = subprocess.Popen(
                [os.path.join(BUILD, "switch"), net, str(count)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        self.write_pid("switch.pid", process)
        while not os.path.exists(os.path.join(net, f"n{count}")):
            if process.poll() is not None:
                raise Failure(f"the switch did not start: {self.tail('switch.log')}")
            time.sleep(0.005)

    def write_pid(self, name, process):
        with open(os.path.join(self.state, name), "w") as file:
            file.write(f"{process.pid}\n")

    def tail(self, name):
        """The last lines of a log."""
        with open(os.path.join(self.state, name), errors="replace") as file:
            return "\n".join(file.read().split("\n")[-15:])

    def qemu(self, node):
        """The command line of a node's VM. Node 0 is the template, which borrows node 1's place at the switch."""
        config = self.config
        name = 0 if config["template"] else node
        append = f"console=ttyS0 loglevel=5 panic=-1 unum.node={name}"
        if config["checkers"]:
            append += " " + CHECKERS
        if config["systemd"]:
            append += " " + SYSTEMD
        line = [
            config["qemu"], "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35", *config["accel"], "-smp", str(config["cpus"]), "-m", str(config["mem"]),
            "-kernel", config["kernel"], "-initrd", config["initramfs"], "-append", append,
            "-chardev", f"file,id=console,path={self.path(node, 'console.log')},append=on",
            "-serial", "chardev:console",
            "-qmp", f"unix:{self.path(node, 'qmp')},server=on,wait=off",
            "-drive", f"file={config['root']},if=none,id=root,format=raw,readonly=on,file.locking=off",
            "-device", "virtio-blk-pci,drive=root",
            "-drive", f"file={self.path(node, 'disk')},if=none,id=disk,format=raw",
            "-device", "virtio-blk-pci,drive=disk",
            "-netdev", f"stream,id=net,server=off,addr.type=unix,addr.path={self.state}/net/n{node or 1}",
            "-device", f"virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:{name:02x}",
            # Tells a copy of the template that it is one: its random numbers must differ.
            "-device", "vmgenid,guid=auto",
            "-device", "virtio-serial-pci,id=ports,max_ports=31",
        ]
        for port in range(channel.PORTS):
            line += [
                "-chardev", f"socket,id=e{port},path={self.path(node, f'e{port}')},server=on,wait=off",
                "-device", f"virtserialport,bus=ports.0,nr={port + 1},chardev=e{port},name=ssi.exec.{port}",
            ]
        if node and config["template"]:
            line += ["-incoming", f"exec:cat {config['template']}"]
        return line

    def template(self):
        """The path of a booted VM's memory, to start nodes from; made on first use."""
        line = self.qemu(0)
        key = hashlib.sha256(" ".join(line).replace(self.state, "").encode()).hexdigest()[:16]
        path = os.path.join(accel.CACHE, f"template-{key}")
        with open(os.path.join(accel.CACHE, "template.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(path):
                say("booting a template")
                os.mkdir(self.path(0))
                self.power_on(0)
                self.boot(0)
                control = self.path(0, "qmp")
                qmp.command(control, "stop")
                qmp.command(control, "migrate", uri=f"exec:cat >{path}.part")
                deadline = time.monotonic() + BOOT_TIMEOUT_S
                while (status := qmp.command(control, "query-migrate")["status"]) != "completed":
                    if time.monotonic() > deadline or status in ("failed", "cancelled"):
                        raise Failure(f"the template cannot be written to {path}.part: is there room?")
                    time.sleep(0.05)
                self.end([self.pid("n0/pid")])
                shutil.rmtree(self.path(0))
                os.rename(f"{path}.part", path)
        os.utime(path)
        for name in os.listdir(accel.CACHE):
            other = os.path.join(accel.CACHE, name)
            if name.startswith("template-") and time.time() - os.path.getmtime(other) > TEMPLATE_KEPT_S:
                os.unlink(other)
        return path

    def power_on(self, node):
        """Starts a node's VM and waits until it can be talked to; the kernel in it has yet to boot."""
        disk = self.path(node, "disk")
        if not os.path.exists(disk):
            done = subprocess.run(
                ["mkfs.ext4", "-q", disk, DISK], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise Failure(f"no disk for n{node}: {done.stderr.strip()}")
        with open(self.path(node, "qemu.log"), "ab") as log:
            process = subprocess.Popen(
                self.qemu(node), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.write_pid(f"n{node}/pid", process)
        # The sockets of an earlier life are there still; QEMU binds the last one before it goes on.
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers(self.path(node, f"e{channel.PORTS - 1}")):
            if time.monotonic() > deadline:
                raise Failure(f"n{node}: QEMU does not answer: {self.tail(f'n{node}/qemu.log')}")
            if process.poll() is not None:
                raise Failure(f"n{node}: QEMU did not start: {self.tail(f'n{node}/qemu.log')}")
            time.sleep(0.01)

    @staticmethod
    def answers(path):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            return probe.connect_ex(path) == 0

    def boot(self, node):
        """Waits until a node that has power is usable, and gives it another chance if it stands still.

        The module is not loaded before this is over.
        """
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            began = time.monotonic()
            try:
                self.wait_for_agent(node)
                if node and self.config["ssi"]:
                    ssi.install(self, node)
                return
            except channel.Silent as error:
                self.note_registers(node)
                if attempt == BOOT_ATTEMPTS:
                    raise Failure(f"n{node} does not boot: {self.tail(f'n{node}/console.log')}") from None
                took = time.monotonic() - began
                say(f"{error} after {took:.0f} s (see {self.path(node)}): power off, power on")
                self.kill(node)
                self.power_on(node)

    def wait_for_agent(self, node):
        """Waits for the agent, and makes a copy of the template the node it is to be."""
        command, timeout = ["true"], BOOT_TIMEOUT_S
        if node and self.config["template"]:
            control = self.path(node, "qmp")
            deadline = time.monotonic() + START_TIMEOUT_S
            while qmp.command(control, "query-status")["status"] == "inmigrate":
                if time.monotonic() > deadline:
                    raise channel.Silent(f"n{node} does not read its template")
                time.sleep(0.02)
            qmp.command(control, "cont")
            command, timeout = ["/usr/lib/unum/boot", str(node)], START_TIMEOUT_S
        try:
            status, _, said = channel.capture(self.path(node), command, timeout=timeout)
        except channel.Gone as error:
            raise Failure(f"{error} while it booted: {self.tail(f'n{node}/console.log')}") from None
        if status:
            raise Failure(f"n{node}: {said}")
        if not (node and self.config["template"]):
            self.set_clock(node)

    def set_clock(self, node):
        """Sets the clock of a node that booted by itself, and has it boot again if that clock does not keep time.

        A kernel measures how fast its processor counts. Where the host is busy just then, it may be wrong by a factor, and
        all that is measured later is thrown away for not being like it.
        """
        path = self.path(node)
        first = self.uptime(path)
        deadline = time.monotonic() + CLOCK_SEEN_S
        status, _, said = channel.capture(path, ["/usr/lib/unum/agent", "clock"], timeout=START_TIMEOUT_S)
        if status:
            raise Failure(f"n{node}: its clock cannot be set: {said}")
        time.sleep(max(0, deadline - time.monotonic()))
        last = self.uptime(path)
        least, most = last[0] - first[2], last[2] - first[0]
        if not least * (1 - CLOCK_OFF) <= last[1] - first[1] <= most * (1 + CLOCK_OFF):
            raise channel.Silent(f"n{node} counts {last[1] - first[1]:.1f} s in {least:.1f} to {most:.1f} s")

    @staticmethod
    def uptime(path):
        """How long a node runs by its own clock, and the host's time before and after it was asked."""
        before = time.monotonic()
        _, text, _ = channel.capture(path, ["cat", "/proc/uptime"], timeout=START_TIMEOUT_S)
        return before, float(text.split()[0]), time.monotonic()

    def note_registers(self, node):
        """Leaves a trace of where a silent node is."""
        try:
            said = qmp.command(self.path(node, "qmp"), "human-monitor-command", **{"command-line": "info registers -a"})
        except Failure:
            return
        with open(self.path(node, "registers.log"), "a") as file:
            file.write(said)

    def down(self):
        """Ends all processes; the logs stay for a while."""
        if not os.path.isdir(self.state):
            return
        self.end(self.pids())
        last = f"{self.state}.last"
        base = os.path.dirname(last)
        for name in os.listdir(base):
            path = os.path.join(base, name)
            if path == last or name.endswith(".last") and time.time() - os.path.getmtime(path) > LOGS_KEPT_S:
                shutil.rmtree(path, ignore_errors=True)
        os.rename(self.state, last)
        os.utime(last)
        say(f"logs: {last}")

    @staticmethod
    def end(pids):
        """Kills processes and waits until they are gone."""
        waiting = []
        for pid in pids:
            try:
                waiting.append(os.pidfd_open(pid))
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for descriptor in waiting:
            select.select([descriptor], [], [], 10)
            os.close(descriptor)
        # Those that are our own children.
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    # Single nodes

    def kill(self, node):
        """Power cut."""
        pid = self.pid(f"n{node}/pid")
        if pid is None:
            raise Failure(f"n{node} does not run")
        self.end([pid])

    def start(self, node):
        """Boots a node that has no power."""
        if self.alive(node):
            raise Failure(f"n{node} runs already")
        faulthandler.dump_traceback_later(LONG_S, repeat=True)
        self.power_on(node)
        self.boot(node)
        if self.config["ssi"]:
            ssi.start_ssi(self, node)
            ssi.wait_until_ready(self, node)

    def freeze(self, node):
        """Stops a node's processors."""
        qmp.command(self.path(node, "qmp"), "stop")

    def thaw(self, node):
        """Lets them go on."""
        qmp.command(self.path(node, "qmp"), "cont")

    # All of it

    def switch(self, line):
        """Tells the switch something; returns its answer."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            try:
                link.connect(os.path.join(self.state, "net/ctl"))
                link.sendall(line.encode() + b"\n")
                answer = link.makefile().read()
            except OSError as error:
                raise Failure(f"the switch does not answer: {error}: vm/cluster down, then up") from None
        if line != "show" and answer != "ok\n":
            raise Failure(answer.strip())
        return answer

    def status(self):
        """Prints what runs and what went over the network."""
        for node in self.nodes:
            if not self.alive(node):
                say(f"n{node} off")
            else:
                say(f"n{node} {'frozen' if self.frozen(node) else 'runs'} pid {self.pid(f'n{node}/pid')}")
        for line in self.switch("show").splitlines():
            a, b, frames, size, cut, lost = line.split()
            say(f"n{a} -> n{b} {frames} frames {size} bytes {cut} cut {lost} lost")
