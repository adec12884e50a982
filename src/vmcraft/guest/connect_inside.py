"""The helper that connects a socket of ours to a path inside a guest's namespaces.

Runs alone (`python -I -S connect_inside.py`) with an empty environment, the socket and a pidfd of the guest's leader
as its only further descriptors. No descriptor travels back: the agent and this process share one open file
description, and the exit status is 0 or an errno.

Everything that is needed is imported before setns: afterwards the file system is the guest's.

Arguments: socket, pidfd, namespace flags, path, seconds to keep trying.
"""

import _socket
import ctypes
import os
import sys
import time

_PR_SET_DUMPABLE = 4
_CLONE_NEWUSER = 0x10000000
_RETRIED = (2, 111, 11)  # ENOENT, ECONNREFUSED, EAGAIN: the guest is still booting
_PAUSE_S = 0.002


def main(socket_fd: int, pid_fd: int, flags: int, path: bytes, limit: float) -> int:
    """Enter the namespaces, then connect in a child that has a process id there."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Guest root must not look into us through its /proc; the kernel would clear this only at setresuid.
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.setns(pid_fd, flags):
        return ctypes.get_errno() or 1
    if flags & _CLONE_NEWUSER:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256
    os._exit(_connect(socket_fd, path, limit))


def _connect(socket_fd: int, path: bytes, limit: float) -> int:
    end = time.monotonic() + limit
    sock = _socket.socket(fileno=socket_fd)
    while True:
        try:
            sock.connect(path)
        except OSError as error:
            if error.errno not in _RETRIED or time.monotonic() > end:
                return error.errno or 1
        else:
            return 0
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), os.fsencode(sys.argv[4]), float(sys.argv[5])))
