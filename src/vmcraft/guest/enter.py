"""A socket of ours, connected from inside a guest's namespaces, ready to be handed to `bus`.

/proc/PID/root is never used: an absolute symlink in the guest would resolve against the host's root, so a guest could
hand us the host's own bus. A pidfd names the leader, since a process id can be used again.
"""

import os
import select
import socket
import sys
from dataclasses import dataclass

from vmcraft.errors import ConnectionLost, GuestGone
from vmcraft.host.programs import run_program
from vmcraft.host.syscalls import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER

HELPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "connect_inside.py")
SYSTEM_BUS = "/run/dbus/system_bus_socket"
PRIVATE_SOCKET = "/run/systemd/private"
_HELPER_LIMIT_S = 10.0
"""Beyond the time that the helper itself keeps trying."""
_ESRCH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """A guest's PID 1, held by a descriptor.

    Attributes:
        pid: Its process id on the host, for messages.
        pidfd: Names the process for as long as it is open; the owner closes it.
        own_users: Whether it lives in a user namespace of its own.
    """

    pid: int
    pidfd: int
    own_users: bool

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    @classmethod
    def of(cls, pid: int) -> "Leader":
        """Take hold of a process; the caller must check afterwards that it is still the machine's leader."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise GuestGone("the guest ended while it was started") from error
        try:
            theirs = os.stat(f"/proc/{pid}/ns/user").st_ino
        except OSError as error:
            os.close(pidfd)
            raise GuestGone("the guest ended while it was started") from error
        return cls(pid=pid, pidfd=pidfd, own_users=theirs != os.stat("/proc/self/ns/user").st_ino)


async def connect_inside(leader: Leader, path: str, *, patience: float) -> socket.socket:
    """A non-blocking stream socket, connected to `path` as the guest sees it.

    Args:
        leader: The guest's PID 1.
        path: Of a listening AF_UNIX socket.
        patience: Seconds to wait for the socket to appear.

    Raises:
        GuestGone: The guest has ended.
        ConnectionLost: It lives, and there is no such socket within that time.
    """
    # Joining the user namespace one is in already is an error (EINVAL), so it is named only when it differs.
    flags = CLONE_NEWNS | CLONE_NEWPID | (CLONE_NEWUSER if leader.own_users else 0)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        argv = [sys.executable, "-I", "-S", HELPER, str(sock.fileno()), str(leader.pidfd), str(flags), path]
        finished = await run_program(
            [*argv, f"{patience:g}"], limit=patience + _HELPER_LIMIT_S, pass_fds=[sock.fileno(), leader.pidfd]
        )
        if finished.status == _ESRCH or not leader.alive:
            raise GuestGone("the guest has ended")
        if finished.status != 0:
            reason = os.strerror(finished.status) if 0 < finished.status < 200 else f"status {finished.status}"
            raise ConnectionLost(
                f"the guest lives, but {path} in it cannot be connected: {reason}",
                remedy="start what listens there in the guest, or discard, which boots it anew",
            )
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
