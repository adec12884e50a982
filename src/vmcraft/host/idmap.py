"""Id-mapped mounts that are attached nowhere: they live as long as their descriptor.

Knows how such a mount is made from a process with threads (by a small program of our own); leaves what is read
through it to RootDir.
"""

import errno
import os
import socket
import subprocess
import sys

from vmcraft.errors import CannotMapIds, HostError
from vmcraft.host import syscalls
from vmcraft.model.printable import quoted

CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mapped_tree_child.py")
LIMIT_S = 10.0
"""The program takes 30 ms; a host under load some hundred."""

_READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def mapped(path: str, *, inside: int, outside: int, attributes: int = _READ_ONLY) -> int:
    """A detached mount of the directory at `path` with its ids mapped; 65536 ids, read-only unless said otherwise.

    Args:
        path: Directory of the host.
        inside: First id on disk.
        outside: The id that this one appears as.
        attributes: MOUNT_ATTR_* of `syscalls`.

    Returns:
        A descriptor, close-on-exec, for the caller to close; the mount goes with it.

    Raises:
        CannotMapIds: The file system (or the kernel) knows no id-mapped mounts.
        HostError: No answer within 10 s.
        OSError: The path does not exist and the like.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            words = [str(theirs.fileno()), str(inside), str(outside), str(attributes), os.path.abspath(path)]
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", CHILD, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        with child:
            ours.settimeout(LIMIT_S)
            try:
                message, fds, _, _ = socket.recv_fds(ours, 256, 1, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError:
                raise HostError(f"no id-mapped mount of {quoted(path)} within {LIMIT_S:.0f} s") from None
            finally:
                child.kill()
    if fds:
        return fds[0]
    raise _refusal(path, message)


def reverse_mapped(path: str, base: int) -> int:
    """A detached, read-only mount of `path` in which the ids that are BASE.. on disk appear as 0...

    So an overlay's upper shows its owners, ACLs and file capabilities as the guest sees them. What belongs to an id
    outside the range appears as the overflow id 65534, and not even root may read it against its mode.

    Args:
        path: Directory of the host.
        base: First id of the guest's range of 65536.

    Returns:
        A descriptor as `mapped` answers it.
    """
    return mapped(path, inside=base, outside=0)


def _refusal(path: str, message: bytes) -> OSError | HostError:
    number = int.from_bytes(message[:4], "little")
    subject = message[4:].decode(errors="replace")
    if not number:
        return HostError(f"the program that makes an id-mapped mount of {quoted(path)} ended without an answer")
    if number in _CANNOT:
        return CannotMapIds(
            f"the file system of {quoted(path)} takes no id-mapped mount ({subject}: {os.strerror(number)})",
            remedy="copy the root to ext4, xfs, btrfs or tmpfs, or open it without private user ids",
        )
    return OSError(number, os.strerror(number), path)
