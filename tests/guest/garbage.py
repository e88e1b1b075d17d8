#!/usr/bin/python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Says senseless things to everything of the product that listens.

garbage.py netlink SEED COUNT       to the generic netlink family
garbage.py forbidden                the same commands without privileges: each must be refused
garbage.py device SEED COUNT        to /dev/ssi: every call a device can get
garbage.py stub                     offers itself as a guest that nobody will ever send: it must not wait for ever
garbage.py port SEED COUNT HOST     to the daemon's TCP port
garbage.py stranger HOST [CERT KEY] speaks TLS there, without or with a certificate of another cluster

Prints what came of it and exits with 0 if every answer was an error or silence, else says what was taken.
"""

import errno
import fcntl
import mmap
import os
import random
import select
import signal
import socket
import ssl
import struct
import sys
import time

PORT = 7400
NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 0x10, 3, 1, 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3


def attribute(kind, value):
    """One netlink attribute."""
    data = struct.pack("<HH", 4 + len(value), kind) + value
    return data + bytes(-len(data) % 4)


class Netlink:
    """A generic netlink socket."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self.socket.bind((0, 0))
        self.socket.settimeout(10)
        self.sequence = 0

    def ask(self, kind, command, payload, flags=NLM_F_REQUEST | NLM_F_ACK):
        """Sends a message; returns its errno, 0 if it was taken."""
        self.sequence += 1
        header = struct.pack("<IHHII", 20 + len(payload), kind, flags, self.sequence, 0)
        self.socket.send(header + struct.pack("<BBH", command, 1, 0) + payload)
        answer = b""
        while True:
            data = self.socket.recv(65536)
            while data:
                size, got, _, sequence, _ = struct.unpack_from("<IHHII", data)
                if sequence == self.sequence and got == NLMSG_ERROR:
                    return -struct.unpack_from("<i", data, 16)[0], answer
                if sequence == self.sequence and got == NLMSG_DONE:
                    return 0, answer
                answer = data[20:size]
                data = data[(size + 3) & ~3 :]

    def raw(self, data):
        """Sends bytes and does not care."""
        self.socket.send(data)
        self.socket.setblocking(False)
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        self.socket.settimeout(10)

    def family(self):
        """The number of the family."""
        error, answer = self.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, attribute(CTRL_ATTR_FAMILY_NAME, b"ssi\0"))
        if error:
            sys.exit(f"there is no family ssi: {os.strerror(error)}")
        while answer:
            size, kind = struct.unpack_from("<HH", answer)
            if kind == CTRL_ATTR_FAMILY_ID:
                return struct.unpack_from("<H", answer, 4)[0]
            answer = answer[(size + 3) & ~3 :]
        sys.exit("the family has no number")


def nonsense(rng):
    """Attributes that look right, nearly right, or not at all."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(300))
    parts = b""
    for _ in range(rng.randrange(8)):
        kind = rng.randrange(22) | rng.choice((0, 0, 0, 0x8000, 0x4000))
        value = rng.choice(
            (
                rng.randbytes(rng.choice((0, 1, 2, 4, 8, 12, 100))),
                struct.pack("<I", rng.choice((0, 1, 4, 5, 31, 32, 255, 0x7FFFFFFF, 0xFFFFFFFF))),
                struct.pack("<Q", rng.choice((0, 1, 1 << 63, (1 << 64) - 1))),
            )
        )
        part = attribute(kind, value)
        if rng.random() < 0.1:
            part = struct.pack("<H", rng.randrange(65536)) + part[2:]
        parts += part
    return parts


def netlink(seed, count):
    rng = random.Random(seed)
    link = Netlink()
    family = link.family()
    answers = {}
    for _ in range(count):
        command = rng.choice((rng.randrange(12), rng.randrange(256)))
        if rng.random() < 0.1:
            size = rng.choice((0, 1, 15, 16, 17, 20, 60000))
            body = rng.randbytes(rng.randrange(100))
            link.raw(struct.pack("<IHHII", size, family, rng.randrange(65536), 1, 0) + body)
            continue
        flags = NLM_F_REQUEST | NLM_F_ACK | rng.choice((0, 0, 0, NLM_F_DUMP))
        error, _ = link.ask(family, command, nonsense(rng), flags)
        name = errno.errorcode.get(error, error) if error else "taken"
        answers[name] = answers.get(name, 0) + 1
    print(f"netlink: {answers}")
    if sum(answers.values()) - answers.get("taken", 0) < count // 3:
        sys.exit("most of it was taken")


def forbidden():
    family = Netlink().family()
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    link = Netlink()
    for command in range(1, 10):
        error, _ = link.ask(family, command, b"")
        if error != errno.EPERM:
            sys.exit(f"command {command} of a user gives {errno.errorcode.get(error, error)} instead of EPERM")
    try:
        os.open("/dev/ssi", os.O_RDWR)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            print("forbidden: all refused")
            return
        raise
    sys.exit("a user may open /dev/ssi")


def ended(child, seconds):
    """How a child ended, or None if it runs on after this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def in_child(call):
    """Makes a call in a child, which exits with its errno."""
    child = os.fork()
    if child == 0:
        try:
            call()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    return child


def stub():
    child = in_child(lambda: fcntl.ioctl(os.open("/dev/ssi", os.O_RDWR), 0xB501, 0x1234567))
    code = ended(child, 90)
    if code is None:
        os.kill(child, signal.SIGKILL)
        sys.exit("a stub for a process that nobody sends waits for more than 90 s")
    print(f"stub: ended with {code}")


def device(seed, count):
    rng = random.Random(seed)
    answers = {}

    def attempt(what, call):
        try:
            call()
        except (OSError, ValueError) as error:
            name = errno.errorcode.get(getattr(error, "errno", 0), "ValueError")
            answers[name] = answers.get(name, 0) + 1
        else:
            answers[what] = answers.get(what, 0) + 1

    for turn in range(count):
        fd = os.open("/dev/ssi", rng.choice((os.O_RDWR, os.O_RDONLY, os.O_WRONLY)) | os.O_NONBLOCK)
        number = rng.choice((0xB501, 0xB500 | rng.randrange(256), rng.randrange(1 << 32)))
        kind = rng.randrange(6)
        if kind < 3:
            # A child, since a call that is believed does not come back: it may wait for a while, if it can be killed.
            def call(fd=fd, number=number):
                argument = rng.choice((0, 1, rng.randrange(1 << 31), -1, -rng.randrange(1 << 31)))
                fcntl.ioctl(fd, number, argument)

            child = in_child(call)
            code = ended(child, 0.5)
            if code is None:
                os.kill(child, signal.SIGKILL)
                if ended(child, 10) != -signal.SIGKILL:
                    sys.exit(f"ioctl {number:#x} in turn {turn} of seed {seed} cannot be killed")
                name = "waited"
            elif code <= 0:
                sys.exit(f"ioctl {number:#x} in turn {turn} of seed {seed} ended with {code} instead of an error")
            else:
                name = errno.errorcode.get(code, code)
            answers[name] = answers.get(name, 0) + 1
        elif kind == 3:
            attempt("read", lambda: os.read(fd, rng.randrange(5000)))
        elif kind == 4:
            attempt("write", lambda: os.write(fd, rng.randbytes(rng.randrange(5000))))
        else:
            length = 4096 * rng.randrange(1, 20)
            flags = rng.choice((mmap.MAP_SHARED, mmap.MAP_PRIVATE))

            def touch():
                with mmap.mmap(fd, length, flags=flags, offset=4096 * rng.randrange(4)) as area:
                    # Reading one of ours may be an error only a signal can tell: so a child does it.
                    child = os.fork()
                    if child == 0:
                        area[0]
                        os._exit(0)
                    os.waitpid(child, 0)

            attempt("mmap", touch)
        select.select([fd], [fd], [], 0)
        os.close(fd)
    print(f"device: {answers}")


def port(seed, count, host):
    rng = random.Random(seed)
    held = []
    for turn in range(count):
        link = socket.create_connection((host, PORT), timeout=20)
        link.settimeout(5)
        record = struct.pack(">BHH", rng.choice((20, 21, 22, 23, rng.randrange(256))), 0x0301, rng.randrange(65536))
        data = rng.choice((b"", b"GET / HTTP/1.1\r\n\r\n", record, record + rng.randbytes(2000), rng.randbytes(70000)))
        try:
            link.sendall(data)
            if turn % 3 == 0:
                link.shutdown(socket.SHUT_WR)
                while link.recv(4096):
                    pass
        except OSError:
            pass
        # Some stay and say nothing more.
        if turn % 5 == 0 and len(held) < 60:
            held.append(link)
        else:
            link.close()
    print(f"port: {count} connections, {len(held)} of them held")


def stranger(host, certificate=None, key=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate, key)
    try:
        with socket.create_connection((host, PORT), timeout=20) as plain, context.wrap_socket(plain) as link:
            link.settimeout(20)
            # A client hears of its refusal only when it reads.
            link.sendall(b"\0\0\0\x04abcd")
            answer = link.recv(100)
    except (ssl.SSLError, ConnectionError) as error:
        print(f"stranger: {error}")
        return
    if answer:
        sys.exit(f"a stranger was answered: {answer!r}")
    print("stranger: the connection was closed")


def main():
    what, rest = sys.argv[1], sys.argv[2:]
    if what == "netlink":
        netlink(int(rest[0]), int(rest[1]))
    elif what == "forbidden":
        forbidden()
    elif what == "device":
        device(int(rest[0]), int(rest[1]))
    elif what == "stub":
        stub()
    elif what == "port":
        port(int(rest[0]), int(rest[1]), rest[2])
    elif what == "stranger":
        stranger(*rest)
    else:
        sys.exit(f"garbage.py {what}: no such thing")


main()
