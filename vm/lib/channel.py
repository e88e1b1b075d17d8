# SPDX-License-Identifier: MIT OR Apache-2.0

"""The host's end of the channel into a node; vm/src/agent/proto.rs describes what goes over it."""

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import time

from cli import Failure

PORTS = 24
"""Sessions a node can have at a time."""

PADDING = bytes(4096)
HOST_MAX = 4000
HELLO, REQUEST, RUN, STDIN, STDIN_END, WINDOW = 1, 2, 3, 4, 5, 6
STDOUT, STDERR, EXIT, TAKEN = 1, 2, 3, 4

QUIET_S = 60
"""A node that takes nothing of a file for so long does not answer."""

STDIN_MAX = 256 * 1024
"""Bytes of standard input that may be under way."""


class Gone(Failure):
    """The node does not run, or stopped doing so."""


class Silent(Failure):
    """The node runs, and does not answer in time."""


def frame(kind, payload=b""):
    """One frame."""
    return struct.pack("<BH", kind, len(payload)) + payload


def frames(kind, payload):
    """As many frames as the payload needs."""
    view = memoryview(payload)
    parts = (view[at : at + HOST_MAX] for at in range(0, len(view), HOST_MAX))
    return b"".join(frame(kind, bytes(part)) for part in parts)


def connect(node, deadline=None):
    """A port of the node that nobody else uses, as (socket, lock to keep)."""
    name = os.path.basename(node)
    while True:
        for port in range(PORTS):
            path = os.path.join(node, f"e{port}")
            try:
                lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            except FileNotFoundError:
                raise Gone(f"{name} has gone") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            link = socket.socket(socket.AF_UNIX)
            link.setblocking(False)
            try:
                link.connect(path)
                return link, lock
            except BlockingIOError:
                # QEMU has not yet seen that an earlier client has gone.
                link.close()
                os.close(lock)
            except (ConnectionRefusedError, FileNotFoundError):
                link.close()
                os.close(lock)
                raise Gone(f"{name} does not run: vm/cluster start {name}") from None
        if deadline and time.monotonic() > deadline:
            raise Failure(f"all {PORTS} sessions of {name} are in use")
        time.sleep(0.01)


class Session:
    """One request to the agent, from its first byte to the exit status.

    `deadline` is when that must be there; `quiet` how many seconds may pass without a byte in either direction.
    """

    def __init__(self, node, request, window=None, deadline=None, quiet=None):
        self.name = os.path.basename(node)
        self.deadline = deadline
        self.quiet = quiet
        if deadline is None and quiet is not None:
            self.link, self.lock = connect(node, time.monotonic() + quiet)
        else:
            self.link, self.lock = connect(node, deadline)
        self.nonce = os.urandom(16)
        self.status = None
        self.under_way = 0
        self.inbox = bytearray()
        self.outbox = bytearray(PADDING + frame(HELLO, self.nonce))
        if window:
            self.outbox += frame(WINDOW, window)
        words = b"".join(os.fsencode(word) + b"\0" for word in request)
        self.outbox += frames(REQUEST, words) + frame(RUN)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The lock last: the next client must find the port free.
        self.link.close()
        os.close(self.lock)

    def pump(self, source, output, wake=None):
        """Carries bytes until the exit status comes, and returns that.

        `source` is a descriptor to read standard input from, or None; `output(kind, bytes)` takes what the
        node says; `wake` is a descriptor and what to do when it can be read.
        """
        while self.status is None:
            reading = [self.link] + ([wake[0]] if wake else [])
            if source is not None and self.under_way < STDIN_MAX:
                reading.append(source)
            left = self.quiet if self.deadline is None else max(0, self.deadline - time.monotonic())
            ready, writable, _ = select.select(reading, [self.link] if self.outbox else [], [], left)
            if not ready and not writable:
                raise Silent(f"{self.name} does not answer")
            if writable:
                self.send()
            if self.link in ready:
                self.receive(output)
            if wake and wake[0] in ready:
                wake[1]()
            if source in ready:
                source = self.read(source)
        return self.status

    def read(self, source):
        """Takes from standard input; returns where to go on reading."""
        try:
            data = os.read(source, STDIN_MAX - self.under_way)
        except OSError:
            data = b""
        if data:
            self.outbox += frames(STDIN, data)
            self.under_way += len(data)
            return source
        self.outbox += frame(STDIN_END)
        return None

    def send(self):
        try:
            del self.outbox[: self.link.send(self.outbox)]
        except (BrokenPipeError, ConnectionResetError):
            raise Gone(f"{self.name} has gone") from None
        except BlockingIOError:
            pass

    def receive(self, output):
        try:
            data = self.link.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            raise Gone(f"{self.name} has gone")
        self.inbox += data
        if self.nonce:
            # What comes before it was meant for an earlier client.
            at = self.inbox.find(self.nonce)
            if at < 0:
                del self.inbox[: -len(self.nonce)]
                return
            del self.inbox[: at + len(self.nonce)]
            self.nonce = None
        at = 0
        while len(self.inbox) - at >= 3:
            kind, size = struct.unpack_from("<BH", self.inbox, at)
            if len(self.inbox) - at - 3 < size:
                break
            payload = bytes(self.inbox[at + 3 : at + 3 + size])
            at += 3 + size
            if kind == EXIT:
                self.status = payload[0]
            elif kind == TAKEN:
                self.under_way -= struct.unpack("<I", payload)[0]
            else:
                output(kind, payload)
        del self.inbox[:at]


def write_all(descriptor, data):
    """Writes all of it, and ends quietly like other filters if nobody reads."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        os._exit(128 + 13)
    except BlockingIOError:
        # Somebody made our output not wait; then we do.
        select.select([], [descriptor], [])
        write_all(descriptor, data)


def to_streams(kind, data):
    """Standard output and error of this process."""
    write_all(1 if kind == STDOUT else 2, data)


def run(node, words, terminal=False):
    """Runs a command with this process's own streams; returns its exit status."""
    if terminal:
        return run_on_terminal(node, words)
    with Session(node, ["exec", "", *words]) as session:
        return session.pump(0, to_streams)


def run_on_terminal(node, words):
    """The same, on a terminal in the node; a terminal here becomes transparent meanwhile."""
    import signal
    import termios
    import tty

    term = os.environ.get("TERM") or "xterm"

    def size():
        for descriptor in (0, 1, 2):
            try:
                packed = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
                return struct.pack("<HH", *struct.unpack("HHHH", packed)[:2])
            except OSError:
                continue
        return struct.pack("<HH", 24, 80)

    with Session(node, ["exec", term, *words], window=size()) as session:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGWINCH, lambda *_: None)

        def resized():
            os.read(reader, 512)
            session.outbox += frame(WINDOW, size())

        saved = None
        try:
            saved = termios.tcgetattr(0)
            tty.setraw(0)
        except termios.error as error:
            if error.args[0] not in (errno.ENOTTY, errno.EINVAL, errno.EBADF):
                raise
        try:
            return session.pump(0, to_streams, (reader, resized))
        finally:
            if saved:
                termios.tcsetattr(0, termios.TCSADRAIN, saved)


def capture(node, words, timeout=60):
    """Runs a command for a program here; returns (exit status, standard output, standard error)."""
    said = {STDOUT: bytearray(), STDERR: bytearray()}
    with Session(node, ["exec", "", *words], deadline=time.monotonic() + timeout) as session:
        session.outbox += frame(STDIN_END)
        status = session.pump(None, lambda kind, data: said[kind].extend(data))
    return status, said[STDOUT].decode(errors="replace"), said[STDERR].decode(errors="replace")


def push(node, source, destination):
    """Copies a file into a node, mode and all; it appears there when it is whole."""
    if destination.endswith("/"):
        destination += os.path.basename(source)
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{source}: {error.strerror}") from None
    try:
        mode = f"{os.fstat(descriptor).st_mode & 0o7777:o}"
        with Session(node, ["push", mode, destination], quiet=QUIET_S) as session:
            return session.pump(descriptor, to_streams)
    finally:
        os.close(descriptor)
