# SPDX-License-Identifier: MIT OR Apache-2.0

"""Which accelerator boots our kernel here.

A /dev/kvm may be there and of no use, for instance inside another VM. So the kernel is booted once with it, as
far as the first program of the initramfs; the answer is kept for this kernel on this machine.
"""

import hashlib
import os
import subprocess

# All that QEMU can do but the promise of fast string instructions: emulated, they copy byte by byte.
TCG = ["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc"]
KVM = ["-accel", "kvm", "-cpu", "host"]

CACHE = os.environ.get("UNUM_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "unum")

PROBE_TIMEOUT_S = 15


def choose(qemu, kernel, initramfs):
    """QEMU's options for accelerator and processor."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    with open("/proc/cpuinfo", "rb") as file:
        # Without the frequencies, which change.
        processor = [line for line in file if line.startswith((b"model name", b"flags"))][:2]
    key = hashlib.sha256(b"".join([qemu.encode(), kernel.encode(), *processor])).hexdigest()[:16]
    answer = os.path.join(CACHE, f"accel-{key}")
    if not os.path.exists(answer):
        word = "kvm" if boots(qemu, kernel, initramfs) else "tcg"
        with open(f"{answer}.{os.getpid()}", "w") as file:
            file.write(word)
        os.rename(file.name, answer)
    with open(answer) as file:
        return KVM if file.read() == "kvm" else TCG


def boots(qemu, kernel, initramfs):
    """Whether KVM gets as far as the initramfs."""
    line = [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *KVM,
        "-machine", "q35", "-m", "256", "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs,
        "-append", "console=ttyS0 quiet panic=-1 unum.probe",
    ]
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return b"unum-probe-ok" in done.stdout
