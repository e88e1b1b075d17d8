#!/usr/bin/python3
# SPDX-License-Identifier: MIT OR Apache-2.0

"""Speaks for a peer to the module of one node: sessions, broken sockets, garbage, new lives, TLS.

    tests/run broken-link-peer
    link_peer.py SSI.KO [CYCLES]    by hand, on a node

It loads and unloads the module itself, so ssid must not run. The module is one with SSI_BENCH, which echoes
frames; see kmod/src/link/bench.rs. Formats are written out here a second time on purpose.
"""

import ctypes
import errno
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time

ME, PEER = 1, 2
CLASSES = CONTROL, MEMORY, BULK = 0, 1, 2
WIRE_VERSION = 2
UAPI_VERSION = 3
RANGE, ALIASES, GUARD = 1 << 17, 32768, 1024
BULK_BYTES = 1 << 18

HELLO, LINK, UNLINK, PEER_DEAD, MIGRATE, WHY, PS, CANCEL, STAT = range(1, 10)
LINK_DOWN, RENEW = 32, 35
A_VERSION, A_NODE, A_INCARNATION, A_PEER, A_CLASS, A_FD, A_PID, A_ERRNO, A_STATS, A_WIRE = 1, 2, 3, 4, 5, 6, 7, 14, 16, 17
U64S = {A_INCARNATION}

K_HELLO, K_ACK, K_SIGNAL, K_PAGES = 1, 2, 23, 49
HEADER = struct.Struct("<IHHQQ")
HELLO_BODY = struct.Struct("<HHIQQQQ")

SOL_TLS, SOL_TCP = 282, 6


class Genl:
    """The family `ssi`, over a raw socket."""

    def __init__(self):
        self.sock = self.open()
        self.seq = 1
        body = struct.pack("BBH", 3, 2, 0) + self.attr(2, b"ssi\0")
        reply = self.exchange(0x10, body)
        attrs = dict(self.attrs(reply))
        self.family = struct.unpack("H", attrs[1][:2])[0]
        group = dict(self.attrs(next(self.attrs(attrs[7]))[1]))
        self.group = struct.unpack("I", group[2])[0]
        self.events_sock = self.open()
        self.events_sock.setsockopt(270, 1, self.group)

    @staticmethod
    def open():
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
        s.bind((0, 0))
        s.settimeout(10)
        return s

    @staticmethod
    def attr(number, value):
        length = 4 + len(value)
        return struct.pack("HH", length, number) + value + bytes(-length % 4)

    @staticmethod
    def attrs(data):
        while len(data) >= 4:
            length, number = struct.unpack("HH", data[:4])
            yield number & 0x3FFF, data[4:length]
            data = data[(length + 3) & ~3 :]

    def exchange(self, family, body):
        """Sends one request; returns the answer's attributes, or raises its errno."""
        self.seq += 1
        self.sock.send(struct.pack("IHHII", 16 + len(body), family, 1 | 4, self.seq, 0) + body)
        answer = b""
        while True:
            data = self.sock.recv(65536)
            while data:
                length, kind, _, seq, _ = struct.unpack("IHHII", data[:16])
                if kind == 2 and seq == self.seq:
                    error = -struct.unpack("i", data[16:20])[0]
                    if error:
                        raise OSError(error, os.strerror(error))
                    return answer
                if seq == self.seq:
                    answer = data[20:length]
                data = data[(length + 3) & ~3 :]

    def raw(self, command, payload=b""):
        return self.exchange(self.family, struct.pack("BBH", command, 1, 0) + payload)

    def call(self, command, **attrs):
        payload = b""
        for name, value in attrs.items():
            number = globals()["A_" + name.upper()]
            payload += self.attr(number, struct.pack("Q" if number in U64S else "I", value))
        return {n: self.decode(v) for n, v in self.attrs(self.raw(command, payload))}

    @staticmethod
    def decode(value):
        return int.from_bytes(value, sys.byteorder) if len(value) <= 8 else value

    def event(self, timeout=5.0):
        """The next event, as (command, attributes), or None."""
        if not select.select([self.events_sock], [], [], timeout)[0]:
            return None
        data = self.events_sock.recv(65536)
        length = struct.unpack("I", data[:4])[0]
        return data[16], {n: self.decode(v) for n, v in self.attrs(data[20:length])}

    def no_event(self, seconds=0.3):
        event = self.event(seconds)
        assert event is None, event

    def link_down(self, cls, *errnos):
        event = self.event()
        assert event and event[0] == LINK_DOWN, event
        assert event[1][A_PEER] == PEER and event[1][A_CLASS] == cls, event
        assert not errnos or event[1][A_ERRNO] in errnos, (errno.errorcode[event[1][A_ERRNO]], event)


def refused(number, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except OSError as e:
        assert e.errno == number, (errno.errorcode.get(e.errno), errno.errorcode[number])
    else:
        raise AssertionError("not refused with " + errno.errorcode[number])


def tls(sock, sends, receives):
    """Kernel TLS with keys that everybody knows: 1.3, AES-GCM-128."""
    sock.setsockopt(SOL_TCP, 31, b"tls")
    for option, key in ((1, sends), (2, receives)):
        info = struct.pack("HH", 0x0304, 51) + bytes([key]) * 8 + bytes([key]) * 16 + bytes([key]) * 4 + bytes(8)
        sock.setsockopt(SOL_TLS, option, info)


def pair(secure=False, receive_bytes=None):
    """Two ends of a TCP connection."""
    with socket.socket() as listener:
        if receive_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.socket()
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    ours, theirs = theirs, ours
    if secure:
        tls(ours, 1, 2)
        tls(theirs, 2, 1)
    ours.settimeout(10)
    return ours, theirs


class End(Exception):
    """The module has ended the connection."""


class Peer:
    """A node that links to the module. It keeps numbers as a module would, and can lie."""

    def __init__(self, genl, secure=False):
        self.genl = genl
        self.secure = secure
        self.incarnation = random.getrandbits(63) | 1
        self.known = self.deaths = self.known_deaths = 0
        self.socks = {}
        self.new_session()

    def new_session(self):
        self.sent = [0 for _ in CLASSES]
        self.taken = [0 for _ in CLASSES]
        self.acked = [0 for _ in CLASSES]

    def reborn(self):
        self.incarnation = random.getrandbits(63) | 1
        self.deaths = self.known = self.known_deaths = 0
        self.new_session()

    def attach(self, cls, **kwargs):
        ours, theirs = pair(self.secure, **kwargs)
        try:
            self.genl.call(LINK, peer=PEER, **{"class": cls}, fd=theirs.fileno())
        finally:
            theirs.close()
        self.socks[cls] = ours

    def hello_bytes(self, cls, /, **lies):
        fields = dict(
            node=PEER,
            peer=ME,
            cls=cls,
            incarnation=self.incarnation,
            deaths=self.deaths,
            known=self.known,
            known_deaths=self.known_deaths,
        )
        fields.update(lies)
        return HELLO_BODY.pack(*fields.values())

    def raw(self, cls, data):
        self.socks[cls].sendall(data)

    def frame(self, cls, kind, payload=b"", seq=0, ack=None, version=WIRE_VERSION, length=None):
        ack = self.taken[cls] if ack is None else ack
        length = len(payload) if length is None else length
        self.raw(cls, HEADER.pack(length, kind, version, seq, ack) + payload)

    def say_hello(self, cls, /, **lies):
        self.frame(cls, K_HELLO, self.hello_bytes(cls, **lies))

    def receive_exactly(self, cls, n):
        data = b""
        while len(data) < n:
            try:
                more = self.socks[cls].recv(n - len(data))
            except ConnectionError as e:
                raise End from e
            if not more:
                raise End
            data += more
        return data

    def receive(self, cls):
        """The next frame: (kind, payload, seq, ack)."""
        length, kind, version, seq, ack = HEADER.unpack(self.receive_exactly(cls, HEADER.size))
        assert version == WIRE_VERSION
        return kind, self.receive_exactly(cls, length), seq, ack

    def expect_hello(self, cls, deaths=None, ack=None):
        kind, payload, seq, told = self.receive(cls)
        assert (kind, seq) == (K_HELLO, 0), (kind, seq)
        node, peer, c, incarnation, said, known, known_deaths = HELLO_BODY.unpack(payload)
        assert (node, peer, c) == (ME, PEER, cls), (node, peer, c)
        assert incarnation
        assert deaths is None or said == deaths, said
        assert ack is None or told == ack, (told, ack)
        self.known, self.known_deaths = incarnation, said
        self.acked[cls] = told
        return known, known_deaths

    def expect_ack(self, cls):
        kind, _, _, ack = self.receive(cls)
        assert kind == K_ACK, kind
        self.acked[cls] = ack
        return ack

    def expect_ack_of(self, cls, seq):
        """Acknowledgements until this one. On a slow machine it was quiet before, so there may be some."""
        while self.expect_ack(cls) < seq:
            pass
        assert self.acked[cls] == seq

    def link(self, cls, **kwargs):
        """A fresh socket, both Hellos, and the acknowledgement that says ours has arrived."""
        self.attach(cls, **kwargs)
        self.expect_hello(cls)
        self.say_hello(cls)

    def up(self):
        for cls in CLASSES:
            self.link(cls)
            self.expect_ack(cls)

    def signal(self, cls, payload, seq=None):
        if seq is None:
            self.sent[cls] += 1
            seq = self.sent[cls]
        self.frame(cls, K_SIGNAL, payload, seq=seq)

    def take(self, cls, kinds=(K_SIGNAL,)):
        """The next numbered frame; acknowledgements before it are noted."""
        while True:
            kind, payload, seq, ack = self.receive(cls)
            self.acked[cls] = max(self.acked[cls], ack)
            if kind != K_ACK:
                break
        assert kind in kinds, kind
        assert seq == self.taken[cls] + 1, (seq, self.taken[cls])
        self.taken[cls] = seq
        return kind, payload

    def echo(self, cls, payload):
        self.signal(cls, b"echo" + payload)
        assert self.take(cls)[1] == b"echo" + payload

    def expect_end(self, cls):
        try:
            while True:
                self.receive(cls)
        except End:
            self.socks.pop(cls).close()

    def late(self, hello):
        """A socket on which a Hello of a session comes that is over."""
        self.attach(CONTROL)
        self.expect_hello(CONTROL)
        self.frame(CONTROL, K_HELLO, hello)
        self.genl.link_down(CONTROL, errno.EPROTO)
        self.expect_end(CONTROL)

    def others_end(self, cls):
        """The module ends the sockets of the other classes, which belong to a session that is over."""
        events = [self.genl.event() for _ in CLASSES[1:]]
        told = sorted((e[0], e[1][A_CLASS], e[1][A_ERRNO]) for e in events)
        others = [c for c in CLASSES if c != cls]
        assert told == [(LINK_DOWN, c, errno.ESTALE) for c in others], events
        for c in others:
            self.expect_end(c)

    def leave(self):
        """Closes all sockets, which ssid hears in any order."""
        self.close()
        events = [self.genl.event() for _ in CLASSES]
        assert sorted((e[0], e[1][A_CLASS]) for e in events) == [(LINK_DOWN, c) for c in CLASSES], events

    def close(self):
        for s in self.socks.values():
            s.close()
        self.socks = {}


def fork_pid():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def in_range(pid):
    return ME * RANGE + ALIASES <= pid < (ME + 1) * RANGE


def test_commands_before_hello(genl):
    for command in (LINK, UNLINK, PEER_DEAD, MIGRATE, WHY, PS, CANCEL, STAT):
        refused(errno.ENXIO, genl.raw, command)
    refused(errno.EOPNOTSUPP, genl.raw, 10)
    refused(errno.EOPNOTSUPP, genl.raw, LINK_DOWN)
    refused(errno.EINVAL, genl.raw, HELLO, b"")
    refused(errno.EINVAL, genl.raw, HELLO, b"\x03")
    refused(errno.EINVAL, genl.raw, HELLO, struct.pack("HH", 400, A_NODE) + bytes(8))
    refused(errno.EINVAL, genl.call, HELLO, version=UAPI_VERSION, node=0)
    refused(errno.EINVAL, genl.call, HELLO, version=UAPI_VERSION, node=32)
    assert genl.call(HELLO, version=77, node=ME) == {A_VERSION: UAPI_VERSION, A_WIRE: WIRE_VERSION}
    refused(errno.ENXIO, genl.raw, STAT)


def test_hello_checks_numbers(genl):
    largest = open("/proc/sys/kernel/pid_max").read()
    write("/proc/sys/kernel/pid_max", "131072")
    refused(errno.ERANGE, genl.call, HELLO, version=UAPI_VERSION, node=ME)
    write("/proc/sys/kernel/pid_max", largest)
    for number in (5 * RANGE + ALIASES + 7, ALIASES + 100, ME * RANGE + 5):
        sleeper = None
        while not sleeper:
            write("/proc/sys/kernel/ns_last_pid", str(number - 1))
            p = subprocess.Popen(["sleep", "100"])
            if p.pid >= number:
                sleeper = p
            else:
                p.kill()
                p.wait()
        refused(errno.EEXIST, genl.call, HELLO, version=UAPI_VERSION, node=ME)
        sleeper.kill()
        sleeper.wait()
    write("/proc/sys/kernel/ns_last_pid", "2000")
    assert not in_range(fork_pid()), "a failed Hello keeps numbers as they were"


def test_hello(genl):
    answer = genl.call(HELLO, version=UAPI_VERSION, node=ME)
    assert answer[A_VERSION] == UAPI_VERSION and answer[A_WIRE] == WIRE_VERSION and answer[A_NODE] == ME and answer[A_INCARNATION]
    assert genl.call(HELLO, version=UAPI_VERSION, node=ME) == answer
    refused(errno.EBUSY, genl.call, HELLO, version=UAPI_VERSION, node=PEER)


def test_numbers_stay_in_the_range(genl):
    assert in_range(fork_pid())
    write("/proc/sys/kernel/ns_last_pid", "3000")
    assert in_range(fork_pid())
    write("/proc/sys/kernel/ns_last_pid", str((ME + 1) * RANGE - GUARD - 3))
    assert all(in_range(fork_pid()) for _ in range(20))
    threads = [threading.Thread(target=lambda: ids.append(threading.get_native_id())) for _ in range(20)]
    ids = []
    for t in threads:
        t.start()
        t.join()
    assert len(ids) == 20 and all(map(in_range, ids))
    # Several at once, over the end of the range.
    write("/proc/sys/kernel/ns_last_pid", str((ME + 1) * RANGE - GUARD - 30))
    out = subprocess.run(
        ["sh", "-c", "for j in 1 2 3 4; do (for i in $(seq 15); do /bin/true & echo $!; wait; done) & done; wait"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout.split()
    assert len(out) == 60 and all(in_range(int(n)) for n in out)


def test_chosen_numbers_are_left_alone(genl):
    number = 5 * RANGE + ALIASES + 9
    wanted = (ctypes.c_int * 1)(number)
    args = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    pid = ctypes.CDLL(None).syscall(435, args, 88)
    if pid == 0:
        os._exit(0)
    assert pid == number, pid
    os.waitpid(pid, 0)
    assert in_range(fork_pid())
    assert "outside of this" not in kernel_log()


def test_link_refuses_what_is_no_connection(genl):
    def link(fd, peer=PEER, cls=CONTROL):
        genl.call(LINK, peer=peer, **{"class": cls}, fd=fd)

    refused(errno.EBADF, link, 900)
    refused(errno.EBADF, link, 0xFFFFFFFF)
    with open("/dev/null") as f:
        refused(errno.ENOTSOCK, link, f.fileno())
    with socket.socket() as s:
        refused(errno.ENOTCONN, link, s.fileno())
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        refused(errno.EPROTOTYPE, link, s.fileno())
    a, b = socket.socketpair()
    refused(errno.EPROTOTYPE, link, a.fileno())
    a.send(b"x")
    assert b.recv(1) == b"x", "a socket that was refused is left as it was"
    ours, theirs = pair()
    refused(errno.EINVAL, link, theirs.fileno(), peer=ME)
    refused(errno.EINVAL, link, theirs.fileno(), peer=40)
    refused(errno.EINVAL, link, theirs.fileno(), cls=len(CLASSES))
    for s in (a, b, ours, theirs):
        s.close()


def test_a_session(genl, secure):
    p = Peer(genl, secure)
    p.up()
    p.echo(CONTROL, b"one")
    p.echo(MEMORY, b"two" * 1000)
    p.echo(CONTROL, bytes(256 * 1024 - 4))
    # A frame in pieces.
    data = HEADER.pack(7, K_SIGNAL, WIRE_VERSION, p.sent[CONTROL] + 1, p.taken[CONTROL]) + b"echoabc"
    p.sent[CONTROL] += 1
    for i in range(len(data)):
        p.raw(CONTROL, data[i : i + 1])
    assert p.take(CONTROL)[1] == b"echoabc"
    p.leave()


def test_acknowledgements(genl, secure):
    p = Peer(genl, secure)
    p.up()
    p.signal(CONTROL, b"one")
    begin = time.monotonic()
    assert p.expect_ack(CONTROL) == 1
    assert time.monotonic() - begin < 1.0
    for _ in range(32):
        p.signal(CONTROL, b"many")
    p.expect_ack_of(CONTROL, 33)
    p.signal(CONTROL, bytes(128 * 1024))
    p.expect_ack_of(CONTROL, 34)
    # Nothing new to say: silence.
    p.socks[CONTROL].settimeout(0.4)
    try:
        raise AssertionError(p.receive(CONTROL))
    except TimeoutError:
        pass
    # Our own acknowledgement, alone.
    p.socks[CONTROL].settimeout(10)
    p.echo(CONTROL, b"")
    p.frame(CONTROL, K_ACK)
    p.echo(CONTROL, b"")
    p.leave()


def test_frames_survive_broken_sockets(genl, secure):
    p = Peer(genl, secure)
    p.up()
    expected = [b"echo%d" % i for i in range(400)]
    taken = []
    rng = random.Random(7)
    at = 0
    while len(taken) < len(expected):
        while at < len(expected) and rng.random() < 0.8:
            # Our frame number at + 1; those the module has not taken are said again below.
            p.signal(CONTROL, expected[at], seq=at + 1)
            at += 1
        for _ in range(rng.randrange(30)):
            if len(taken) < at:
                taken.append(p.take(CONTROL)[1])
        if rng.random() < 0.3:
            way = rng.randrange(3)
            if way == 0:
                p.socks[CONTROL].close()
                genl.link_down(CONTROL)
            elif way == 1:
                p.socks[CONTROL].shutdown(socket.SHUT_WR)
                genl.link_down(CONTROL)
            else:
                old = p.socks[CONTROL]
            p.attach(CONTROL)
            p.expect_hello(CONTROL)
            p.say_hello(CONTROL)
            if way == 2:
                genl.no_event(0.05)
                old.close()
            # As a module would; some the module knows already, it must drop them.
            for seq in range(max(1, p.acked[CONTROL] - 3), at + 1):
                p.signal(CONTROL, expected[seq - 1], seq=seq)
        elif len(taken) < at == len(expected):
            taken.append(p.take(CONTROL)[1])
    assert taken == expected
    p.leave()


def test_relink_replaces(genl, secure):
    p = Peer(genl, secure)
    p.up()
    old = p.socks[CONTROL]
    p.link(CONTROL)
    p.expect_ack(CONTROL)
    genl.no_event()
    assert drained(old), "the old socket is shut"
    p.echo(CONTROL, b"x")
    genl.call(UNLINK, peer=PEER)
    for cls in CLASSES:
        p.expect_end(cls)
    genl.no_event()
    p.up()
    p.echo(CONTROL, b"the session goes on")
    assert p.sent[CONTROL] == 2
    genl.call(UNLINK, peer=PEER)
    p.close()


def drained(sock):
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    sock.close()
    return True


def garbage_cases(p):
    yield "noise", lambda: p.raw(CONTROL, random.randbytes(100)), ()
    yield "zeroes", lambda: p.raw(CONTROL, bytes(100)), (errno.EPROTONOSUPPORT,)
    yield "version", lambda: p.frame(CONTROL, K_SIGNAL, seq=p.sent[0] + 1, version=WIRE_VERSION + 1), (errno.EPROTONOSUPPORT,)
    yield "kind", lambda: p.frame(CONTROL, 999, seq=p.sent[0] + 1), (errno.EPROTO,)
    yield "kind 0", lambda: p.frame(CONTROL, 0), (errno.EPROTO,)
    yield "oversize", lambda: p.frame(CONTROL, K_SIGNAL, seq=p.sent[0] + 1, length=256 * 1024 + 1), (errno.EMSGSIZE,)
    yield "huge", lambda: p.frame(CONTROL, K_SIGNAL, seq=p.sent[0] + 1, length=0xFFFFFFFF), (errno.EMSGSIZE,)
    yield "gap", lambda: p.frame(CONTROL, K_SIGNAL, seq=p.sent[0] + 2), (errno.EBADMSG,)
    yield "far gap", lambda: p.frame(CONTROL, K_SIGNAL, seq=2**64 - 1), (errno.EBADMSG,)
    yield "no number", lambda: p.frame(CONTROL, K_SIGNAL, seq=0), (errno.EBADMSG,)
    yield "numbered ack", lambda: p.frame(CONTROL, K_ACK, seq=p.sent[0] + 1), (errno.EBADMSG,)
    yield "ack with payload", lambda: p.frame(CONTROL, K_ACK, b"x"), (errno.EMSGSIZE,)
    yield "ack of the future", lambda: p.frame(CONTROL, K_ACK, ack=p.taken[0] + 1), (errno.EBADMSG,)
    yield "second hello", lambda: p.say_hello(CONTROL), (errno.EPROTO,)
    yield "half a header", lambda: (p.raw(CONTROL, b"12345"), p.socks[0].shutdown(1)), (errno.ECONNRESET,)
    yield "half a frame", lambda: (
        p.frame(CONTROL, K_SIGNAL, b"abc", seq=p.sent[0] + 1, length=10),
        p.socks[0].shutdown(1),
    ), (errno.ECONNRESET,)
    yield "reset", lambda: (
        p.socks[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
        p.socks[0].close(),
    ), (errno.ECONNRESET, errno.ENODATA)


def test_garbage_shuts_the_socket_and_nothing_else(genl, secure):
    p = Peer(genl, secure)
    p.up()
    for name, act, errnos in garbage_cases(p):
        p.echo(CONTROL, name.encode())
        p.echo(MEMORY, name.encode())
        act()
        genl.link_down(CONTROL, *errnos)
        if p.socks[CONTROL].fileno() >= 0:
            p.expect_end(CONTROL)
        p.link(CONTROL)
        p.echo(CONTROL, b"after " + name.encode())
    genl.no_event(0.1)
    genl.call(UNLINK, peer=PEER)
    p.close()


def test_garbage_instead_of_hello(genl, secure):
    p = Peer(genl, secure)
    p.up()
    p.echo(CONTROL, b"x")
    cases = [
        lambda: p.signal(CONTROL, b"too early", seq=2),
        lambda: p.frame(CONTROL, K_ACK),
        lambda: p.say_hello(CONTROL, node=3),
        lambda: p.say_hello(CONTROL, peer=3),
        lambda: p.say_hello(CONTROL, cls=MEMORY),
        lambda: p.say_hello(CONTROL, incarnation=0),
        lambda: p.frame(CONTROL, K_HELLO, p.hello_bytes(CONTROL)[:-1]),
        lambda: p.frame(CONTROL, K_HELLO, p.hello_bytes(CONTROL) + b"x"),
        lambda: p.frame(CONTROL, K_HELLO, p.hello_bytes(CONTROL), ack=99),
        lambda: p.frame(CONTROL, K_HELLO, p.hello_bytes(CONTROL), seq=1),
        lambda: p.raw(CONTROL, b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"),
    ]
    for act in cases:
        p.attach(CONTROL)
        act()
        genl.link_down(CONTROL)
        p.expect_end(CONTROL)
    p.link(CONTROL)
    p.echo(CONTROL, b"y")
    genl.call(UNLINK, peer=PEER)
    p.close()


def test_new_incarnation(genl, secure):
    p = Peer(genl, secure)
    p.up()
    for _ in range(5):
        p.echo(CONTROL, b"old")
        p.echo(MEMORY, b"old")
    before = p.hello_bytes(CONTROL)
    p.reborn()
    p.attach(CONTROL)
    p.expect_hello(CONTROL, ack=5)
    p.say_hello(CONTROL)
    # The session is new, in all classes; the other sockets belonged to the old one.
    p.others_end(CONTROL)
    p.echo(CONTROL, b"new")
    p.link(MEMORY)
    p.echo(MEMORY, b"new")
    # A late socket of the old life.
    p.late(before)
    p.link(CONTROL)
    p.echo(CONTROL, b"still the new one")
    genl.call(UNLINK, peer=PEER)
    p.close()


def test_the_peer_declares_us_dead(genl, secure):
    p = Peer(genl, secure)
    p.up()
    p.echo(CONTROL, b"old")
    p.signal(MEMORY, b"echo, never taken")
    early = p.hello_bytes(CONTROL)
    p.deaths += 1
    p.new_session()
    p.link(MEMORY)
    p.others_end(MEMORY)
    p.echo(MEMORY, b"new")
    p.link(CONTROL)
    p.echo(CONTROL, b"new")
    p.late(early)
    genl.call(UNLINK, peer=PEER)
    p.close()


def test_we_declare_the_peer_dead(genl, secure):
    p = Peer(genl, secure)
    p.up()
    p.echo(CONTROL, b"old")
    p.echo(CONTROL, b"old")
    said = p.known_deaths
    genl.call(PEER_DEAD, peer=PEER)
    for cls in CLASSES:
        p.expect_end(cls)
    genl.no_event()
    genl.call(PEER_DEAD, peer=PEER)
    # It comes back and has not heard of it: what it says it has taken is from another session.
    p.attach(CONTROL)
    p.say_hello(CONTROL)
    p.expect_hello(CONTROL, deaths=said + 1, ack=0)
    p.new_session()
    p.echo(CONTROL, b"new")
    p.link(MEMORY)
    p.echo(MEMORY, b"new")
    genl.call(PEER_DEAD, peer=PEER)
    p.close()


def test_bulk_waits_and_urgent_overtakes(genl, secure):
    p = Peer(genl, secure)
    p.up()
    count, length = 100, 64 * 1024
    p.signal(MEMORY, b"bulk" + struct.pack("<II", count, length))
    time.sleep(0.5)
    p.signal(MEMORY, b"echourgent")
    order = []
    # Not acknowledged: no more than a bounded number comes.
    p.socks[MEMORY].settimeout(1)
    try:
        while True:
            kind, payload, seq, _ = p.receive(MEMORY)
            if kind != K_ACK:
                p.taken[MEMORY] = seq
                order.append(payload[:10] if kind == K_SIGNAL else struct.unpack("<I", payload[:4])[0])
    except TimeoutError:
        pass
    numbers = [n for n in order if isinstance(n, int)]
    assert numbers == list(range(len(numbers))), numbers
    assert len(numbers) * length == BULK_BYTES, len(numbers)
    assert b"echourgent" in order
    p.frame(MEMORY, K_ACK)
    p.socks[MEMORY].settimeout(10)
    while len(numbers) < count:
        numbers.append(struct.unpack("<I", p.take(MEMORY, (K_PAGES,))[1][:4])[0])
        if len(numbers) % 2 == 0:
            p.frame(MEMORY, K_ACK)
    assert numbers == list(range(count))
    # One that waits for room ends with the session.
    p.signal(MEMORY, b"bulk" + struct.pack("<II", count, length))
    time.sleep(0.2)
    genl.call(PEER_DEAD, peer=PEER)
    p.close()


def test_a_full_socket_loses_nothing(genl, secure):
    p = Peer(genl, secure)
    p.up()
    p.link(CONTROL, receive_bytes=4096)
    p.socks[CONTROL].settimeout(20)
    sent = [b"echo" + bytes([i]) * random.randrange(1, 60000) for i in range(200)]

    # Nobody reads for a while: frames end in the middle.
    writer = threading.Thread(target=lambda: [p.signal(CONTROL, s) for s in sent])
    writer.start()
    time.sleep(0.5)
    got = [p.take(CONTROL)[1] for _ in sent]
    writer.join()
    assert got == sent
    genl.call(UNLINK, peer=PEER)
    p.close()


def test_tls_control_records(genl):
    for record, body, errnos in (
        (21, b"\1\0", (errno.ENODATA,)),
        (21, b"\2\50", (errno.EPROTO,)),
        (22, b"\30\0\0\1\0", (errno.EPROTO, errno.EKEYEXPIRED)),
    ):
        p = Peer(genl, True)
        p.up()
        p.echo(CONTROL, b"x")
        p.socks[CONTROL].sendmsg([body], [(SOL_TLS, 1, bytes([record]))])
        genl.link_down(CONTROL, *errnos)
        genl.call(PEER_DEAD, peer=PEER)
        p.close()


def test_many_peers(genl):
    socks = []
    for peer in range(2, 32):
        for cls in CLASSES:
            ours, theirs = pair()
            genl.call(LINK, peer=peer, **{"class": cls}, fd=theirs.fileno())
            theirs.close()
            socks.append(ours)
    for peer in range(2, 32):
        genl.call(UNLINK, peer=peer)
    for s in socks:
        assert drained(s)


def test_statistics(genl):
    stats = struct.unpack("<13Q", genl.call(STAT)[A_STATS])
    assert stats[9] > 1000 and stats[10] > 1000, stats
    assert genl.call(PS) == {}


def kernel_log():
    return subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, check=True).stdout


def load(module):
    subprocess.run(["insmod", module], check=True)


def unload():
    subprocess.run(["rmmod", "ssi"], check=True)


def leftovers():
    """Threads and probes that the module could leave behind."""
    names = subprocess.run(["ps", "-eo", "comm="], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    threads = sum(n.startswith("ssi-") for n in names)
    probed = subprocess.run(["cat", "/sys/kernel/tracing/enabled_functions"], stdout=subprocess.PIPE).stdout
    return threads, b"alloc_pid" in probed


def memory_kib():
    subprocess.run(["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"], check=True)
    time.sleep(0.5)
    info = dict(line.split(":") for line in open("/proc/meminfo"))
    return sum(int(info[k].split()[0]) for k in ("SUnreclaim", "KernelStack", "VmallocUsed", "PageTables"))


def cycles(module, count):
    """Loads and unloads, with links in every state in between."""
    before = None
    for i in range(count):
        load(module)
        genl = Genl()
        genl.call(HELLO, version=UAPI_VERSION, node=ME)
        p = Peer(genl, i % 2 == 1)
        if i % 3 == 0:
            p.up()
            p.echo(CONTROL, b"x")
            p.signal(MEMORY, b"bulk" + struct.pack("<II", 40, 65536))
            for _ in range(20):
                p.signal(CONTROL, b"echo" + bytes(50000))
        elif i % 3 == 1:
            p.attach(CONTROL)
            p.link(MEMORY)
        if i % 4 == 0:
            p.close()
        genl.sock.close()
        genl.events_sock.close()
        unload()
        if p.socks:
            for cls in list(p.socks):
                p.expect_end(cls)
        assert leftovers() == (0, False), leftovers()
        write("/proc/sys/kernel/ns_last_pid", "3000")
        assert not in_range(fork_pid())
        if i == 9:
            before = memory_kib()
    if before:
        grown = memory_kib() - before
        print(f"{count} cycles: {grown} KiB more than after 10")
        assert grown < 3 * 1024, grown


def main():
    module = sys.argv[1]
    subprocess.run(["modprobe", "-q", "tls"], check=True)
    subprocess.run("mountpoint -q /sys/kernel/tracing || mount -t tracefs t /sys/kernel/tracing", shell=True, check=True)
    subprocess.run(["dmesg", "--clear"], check=True)
    load(module)
    genl = Genl()
    once = [
        test_commands_before_hello,
        test_hello_checks_numbers,
        test_hello,
        test_numbers_stay_in_the_range,
        test_chosen_numbers_are_left_alone,
        test_link_refuses_what_is_no_connection,
    ]
    both = [
        test_a_session,
        test_acknowledgements,
        test_frames_survive_broken_sockets,
        test_relink_replaces,
        test_garbage_shuts_the_socket_and_nothing_else,
        test_garbage_instead_of_hello,
        test_new_incarnation,
        test_the_peer_declares_us_dead,
        test_we_declare_the_peer_dead,
        test_bulk_waits_and_urgent_overtakes,
        test_a_full_socket_loses_nothing,
    ]
    last = [test_tls_control_records, test_many_peers, test_statistics]
    runs = [(t, ()) for t in once] + [(t, (s,)) for s in (False, True) for t in both] + [(t, ()) for t in last]
    for test, args in runs:
        begin = time.monotonic()
        print(test.__name__ + (" over TLS" if args == (True,) else ""), end=" ", flush=True)
        test(genl, *args)
        print(f"{time.monotonic() - begin:.2f} s", flush=True)
    genl.sock.close()
    genl.events_sock.close()
    unload()
    assert leftovers() == (0, False), leftovers()
    if len(sys.argv) > 2:
        cycles(module, int(sys.argv[2]))
    log = kernel_log()
    for line in log.splitlines():
        assert not any(w in line for w in ("WARNING", "BUG", "Oops", "Call Trace", "panicked", "outside of this")), log
    print("all good")


main()
