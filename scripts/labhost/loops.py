"""Loop devices: the kernel has them once for all labs and the machine, and they outlive who attached them."""

import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from scripts.labhost.system import read

LOOP_CLR_FD, LOOP_GET_STATUS64 = 0x4C01, 0x4C05
LOOP_MAJOR = 7


class Loop(NamedTuple):
    """An attached loop device: its number, and the file behind it."""

    number: int
    device: int
    inode: int


def attached(state: str) -> dict[Loop, str]:
    """All loop devices of the machine that have a file, and the path that the kernel tells of it."""
    found = {}
    for entry in os.listdir("/sys/block"):
        if path := read(f"/sys/block/{entry}/loop/backing_file").rstrip("\n"):
            number = int(entry.removeprefix("loop"))
            with contextlib.suppress(OSError), _opened(state, number) as node:
                device, inode = struct.unpack_from("QQ", fcntl.ioctl(node, LOOP_GET_STATUS64, bytes(232)))
                found[Loop(number, device, inode)] = path
    return found


def detach_left(state: str, before: list[Loop]) -> None:
    """Detach what a dead lab left attached: not there before it started, and reachable from nowhere now."""
    for loop, path in attached(state).items():
        if loop not in before and not _is_reachable(loop, path):
            with contextlib.suppress(OSError), _opened(state, loop.number) as node:
                fcntl.ioctl(node, LOOP_CLR_FD, 0)


def _is_reachable(loop: Loop, path: str) -> bool:
    """Whether some living mount namespace still has the file under its path.

    When a mount namespace dies, its mounts come apart and the path loses its beginning: so a loop device that a lab
    left behind can be told from one of the machine or of another lab.
    """
    seen = set()
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and (namespace := os.readlink(f"/proc/{entry}/ns/mnt")) not in seen:
                seen.add(namespace)
                found = os.stat(f"/proc/{entry}/root{path}")
                if (found.st_dev, found.st_ino) == (loop.device, loop.inode):
                    return True
    return False


@contextlib.contextmanager
def _opened(state: str, number: int) -> Iterator[int]:
    """A descriptor of a loop device, which may have no node in this machine's /dev."""
    node = f"{state}/loop{number}.{os.getpid()}"
    os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))
    try:
        descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.unlink(node)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
