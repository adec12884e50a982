"""A program of its own: make a detached, id-mapped mount and send its descriptor to whoever started it.

    python -I -S mapped_tree_child.py SOCKET_FD INSIDE OUTSIDE ATTRIBUTES PATH

To make a user namespace takes a fork, which a process with threads cannot do safely; this one has none. It imports
nothing of the package, so that it starts in a few milliseconds. The answer over the socket is one message: four bytes
of errno (0 when the descriptor comes with it) and the error's text.
"""

import importlib.util
import os
import socket
import sys


def main() -> None:
    """Make the mount that the arguments ask for, and answer."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    inside, outside, attributes = (int(word) for word in sys.argv[2:5])
    spec = importlib.util.spec_from_file_location("syscalls", os.path.join(os.path.dirname(__file__), "syscalls.py"))
    assert spec is not None
    assert spec.loader is not None
    syscalls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(syscalls)
    try:
        namespace = syscalls.mapped_user_namespace(inside, outside)
        tree = syscalls.mapped_tree(os.fsencode(sys.argv[5]), namespace, attributes=attributes)
    except OSError as error:
        channel.send((error.errno or 0).to_bytes(4, "little") + str(error.filename).encode(errors="replace")[:200])
    else:
        socket.send_fds(channel, [bytes(4)], [tree])


if __name__ == "__main__":
    main()
