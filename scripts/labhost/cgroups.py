"""The cgroups in which the lab lives: where they are, who is in them, and how they end."""

import contextlib
import os
import signal
import time

from scripts.labhost.system import LabError, below, kill, mounts, read, remove_directories, write_into

REMOVE_LIMIT_S = 5.0


def hierarchies() -> list[str]:
    """Where nspawn makes directories: first cgroup v2, then the v1 hierarchy "systemd" of a hybrid machine.

    Raises:
        LabError: No cgroup v2.
    """
    found = mounts()
    unified = [m.point for m in found if m.fstype == "cgroup2" and below(m.point, "/sys/fs/cgroup")]
    if not unified:
        raise LabError("cgroup v2 is not mounted below /sys/fs/cgroup: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
    legacy = [m.point for m in found if m.fstype == "cgroup" and os.path.basename(m.point) == "systemd"]
    return [unified[-1], *legacy]


def is_populated(cgroup: str) -> bool:
    """Whether a process lives in the cgroup or below it."""
    return "populated 1" in read(f"{cgroup}/cgroup.events")


def processes(cgroup: str) -> list[int]:
    """Who is in the cgroup itself."""
    return [int(word) for word in read(f"{cgroup}/cgroup.procs").split()]


def remove(cgroup: str) -> None:
    """Kill what lives in a cgroup v2 directory and below it, and remove the directories.

    Raises:
        LabError: It is still there after the limit.
    """
    end = time.monotonic() + REMOVE_LIMIT_S
    while os.path.isdir(cgroup):
        if is_populated(cgroup):
            _kill_all(cgroup)
        remove_directories(cgroup)
        if os.path.isdir(cgroup):
            if time.monotonic() > end:
                raise LabError(f"cgroup {cgroup} cannot be removed: {processes(cgroup)}")
            time.sleep(0.005)  # nothing tells when the last dead process is out


def _kill_all(cgroup: str) -> None:
    try:
        write_into(f"{cgroup}/cgroup.kill", "1")
    except OSError:  # before Linux 5.14
        for directory, _, _ in os.walk(cgroup):
            for pid in processes(directory):
                kill(pid, signal.SIGKILL)


def hand_down_controllers(unified: str) -> list[str]:
    """Enable what controllers v2 has, so that limits of guests hold; return those that were not enabled before.

    Refused where the machine's own processes sit in the root of its cgroup namespace (docker): no harm.
    """
    enabled = set(read(f"{unified}/cgroup.subtree_control").split())
    added = []
    for controller in sorted(set(read(f"{unified}/cgroup.controllers").split()) - enabled):
        with contextlib.suppress(OSError):
            write_into(f"{unified}/cgroup.subtree_control", f"+{controller}")
            added.append(controller)
    return added


def take_back_controllers(unified: str, added: list[str]) -> None:
    """Undo hand_down_controllers."""
    for controller in added:
        with contextlib.suppress(OSError):
            write_into(f"{unified}/cgroup.subtree_control", f"-{controller}")
