# SPDX-License-Identifier: MIT OR Apache-2.0

"""QEMU's control socket."""

import json
import socket

from cli import Failure


def command(path, name, **arguments):
    """Executes one command and returns its result."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(30)
        try:
            link.connect(path)
            lines = link.makefile("rw")
            lines.readline()
            for word, values in (("qmp_capabilities", {}), (name, arguments)):
                lines.write(json.dumps({"execute": word, "arguments": values}) + "\n")
                lines.flush()
                answer = {}
                while not answer.keys() & {"return", "error"}:
                    answer = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise Failure(f"QEMU does not answer: {error}: the node does not run, vm/cluster start boots it") from None
    if "error" in answer:
        raise Failure(f"QEMU: {answer['error']['desc']}")
    return answer["return"]
