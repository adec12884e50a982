"""The socket between `run` and its keeper: how a command fares, and that the other end is gone."""

import fcntl
import os
import socket
import struct

from scripts.labhost.system import LabError


def pair() -> tuple[socket.socket, socket.socket]:
    """Our end, on which the sender's process id comes along, and the keeper's."""
    ours, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, keepers


def send_pid(channel: socket.socket) -> None:
    """In the command's process: tell our process id."""
    channel.send(b"!")


def receive_pid(channel: socket.socket) -> int:
    """The process id of the command as we see it: the kernel translates it from the lab's process namespace.

    Raises:
        LabError: There is none.
    """
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(struct.calcsize("iII")))
    pid = int(struct.unpack("iII", ancillary[0][2])[0]) if ancillary else 0
    if not pid:
        raise LabError("the lab ended")
    return pid


def send_status(channel: socket.socket, status: int) -> None:
    """In the keeper: tell what waitpid returned."""
    channel.send(struct.pack("i", status))


def receive_status(channel: socket.socket) -> int | None:
    """What the keeper's waitpid returned, None if the keeper is gone.

    Raises:
        BlockingIOError: Nothing new.
    """
    message = channel.recv(4, socket.MSG_DONTWAIT)
    return struct.unpack("i", message)[0] if message else None


def is_closed(channel: socket.socket) -> bool:
    """Whether the other end of a channel on which it never writes is gone."""
    try:
        return channel.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def notify_by_signal(channel: socket.socket) -> None:
    """Have SIGIO sent when the channel has something to read or is closed: so one wait serves it and the signals."""
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, fcntl.fcntl(channel, fcntl.F_GETFL) | os.O_ASYNC)
