"""systemd-nspawn over the lab's root: started until its PID 1 is ready, and ended in order."""

import contextlib
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from typing import NoReturn

from scripts.labhost import cgroups, tree
from scripts.labhost.layout import GUEST_STATE, Layout
from scripts.labhost.system import LabError, Process, fork, kill, read, write_into

START_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0
RUN_STOP_LIMIT_S = 2.0

OPTIONS = """
    --quiet --boot --notify-ready=yes --hostname=vmlab --settings=no --keep-unit --capability=all
    --system-call-filter=@known --private-network --link-journal=no --resolv-conf=off --timezone=off --console=pipe
"""


def start(layout: Layout, places: list[str]) -> tuple[Process, Process]:
    """Boot the lab.

    Returns:
        nspawn and the lab's PID 1, which is ready.

    Raises:
        LabError: It does not come up; the message has the end of its console.
    """
    if not shutil.which("systemd-nspawn"):
        raise LabError("systemd-nspawn is not installed: run scripts/setup")
    address = f"{layout.name}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"\0{address}")
        pid = fork(lambda: _become_nspawn(layout, places, address))
        leader = _wait_until_ready(layout, pid, notify)
    return Process.of(pid), Process.of(leader)


def _become_nspawn(layout: Layout, places: list[str], address: str) -> NoReturn:
    """In the forked child: mounts of our own, then nspawn. What fails is written to the console log."""
    os.setsid()
    os.umask(0o022)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    console = os.open(layout.console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(console, 1)
    os.dup2(console, 2)
    # Nspawn must sit in a directory of ours before it starts: else it makes its two in the root, for ever.
    write_into(f"{layout.cgroups[0]}/cgroup.procs", "0")
    root = tree.mount_root(layout)
    tree.furnish(root, layout.name, places)
    os.chdir("/")
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "NOTIFY_SOCKET": f"@{address}",
        "UNIFIED_CGROUP_HIERARCHY": "1",
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
        "SYSTEMD_NSPAWN_TMPFS_TMP": "0",
    }
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.execvpe("systemd-nspawn", _command(layout, root, places), environment)


def _command(layout: Layout, root: str, places: list[str]) -> list[str]:
    return [
        "systemd-nspawn",
        *OPTIONS.split(),
        "--register=no",  # there is no machined and no bus outside
        f"--machine={layout.name}",
        f"--directory={root}",
        *(f"--bind={_escape(path)}:{_escape(path)}:norbind" for path in places),
        f"--bind={_escape(layout.guest_state)}:{GUEST_STATE}:norbind",
        "systemd.unit=vmlab.target",
    ]


def _escape(path: str) -> str:
    """A path as a part of an nspawn option."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def _wait_until_ready(layout: Layout, nspawn: int, notify: socket.socket) -> int:
    """Wait for what PID 1 of the lab tells through nspawn; return its process id.

    Raises:
        LabError: nspawn ended, or the limit passed.
    """
    leader, what = 0, "did not become ready"
    end = time.monotonic() + START_LIMIT_S
    with _opened(nspawn) as ended:
        while (left := end - time.monotonic()) > 0:
            readable, _, _ = select.select([notify.fileno(), ended], [], [], left)
            if notify.fileno() in readable:
                words = dict(line.partition("=")[::2] for line in notify.recv(4096).decode().splitlines())
                leader = int(words.get("X_NSPAWN_LEADER_PID", leader))
                if words.get("READY") == "1" and leader:
                    return leader
            elif ended in readable:
                os.waitpid(nspawn, 0)
                what = "ended while it started"
                break
    text = read(layout.console)[-4000:]
    raise LabError(f"the lab {what}; its console ({layout.console}):\n{text}")


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def power_off(nspawn: Process, leader: Process, runs: list[str]) -> None:
    """End the commands, then ask the lab's PID 1 to stop everything in order (SIGRTMIN+4), and wait for nspawn's end.

    Args:
        nspawn: As start returned it.
        leader: As start returned it.
        runs: The cgroups of the commands. PID 1 knows nothing of them, and would give those that ignore SIGTERM 10 s.
    """
    for run in runs:
        for pid in cgroups.processes(run):
            kill(pid, signal.SIGTERM)
    end = time.monotonic() + RUN_STOP_LIMIT_S
    while any(map(cgroups.is_populated, runs)) and time.monotonic() < end:
        time.sleep(0.01)
    for run in runs:
        cgroups.remove(run)
    with contextlib.suppress(ProcessLookupError), _opened(nspawn.pid) as ended:
        os.kill(leader.pid, signal.SIGRTMIN + 4)
        select.select([ended], [], [], STOP_LIMIT_S)
