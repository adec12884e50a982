"""What Python lacks of its host: mount(2), setns(2), mountinfo, small files, processes that cannot be mistaken.

It knows nothing of the lab.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import traceback
from collections.abc import Callable
from typing import NamedTuple

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x0002_0000
MS_REC, MS_PRIVATE = 0x4000, 0x4_0000
PR_SET_PDEATHSIG = 1


class LabError(Exception):
    """What went wrong and what to do, in one sentence for the user."""


def is_systemd_host() -> bool:
    """Whether this machine (or the lab we are already in) has systemd as PID 1."""
    return read("/proc/1/comm").strip() == "systemd" and os.path.isdir("/run/systemd/system")


# --- files -----------------------------------------------------------------------------------------------------------


def read(path: str) -> str:
    """Return a small file as text, "" if it is not there (any more)."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def write(path: str, text: str) -> None:
    """Write a small file, the directories above it included; what is there is replaced, never written through."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unlink(path)
    pathlib.Path(path).write_text(text, encoding="utf-8", errors="surrogateescape")


def write_into(path: str, text: str) -> None:
    """Tell a file of the kernel something."""
    pathlib.Path(path).write_text(text, encoding="ascii")


def unlink(path: str) -> None:
    """Remove a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_directories(top: str) -> None:
    """Remove a directory and those below it, as far as they are empty (or cgroups without processes)."""
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def below(path: str, directory: str) -> bool:
    """Whether path is directory or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


# --- mounts and namespaces -------------------------------------------------------------------------------------------


class Mount(NamedTuple):
    """One line of mountinfo."""

    point: str
    fstype: str


def mounts() -> list[Mount]:
    """What is mounted in our own mount namespace."""
    found = []
    for line in read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        point = point.encode("latin-1").decode("utf-8", "surrogateescape")
        found.append(Mount(point, right.split(" ")[0]))
    return found


def mount(fstype: str, source: str, target: str, options: str) -> None:
    """mount(2) of a new file system.

    Raises:
        LabError: The kernel refuses it.
    """
    names = [os.fsencode(name) for name in (source, target, fstype)]
    _check(libc.mount(*names, ctypes.c_ulong(0), os.fsencode(options)), f"cannot mount {fstype} on {target}")


def unshare_mounts() -> None:
    """Go to a mount namespace of our own: what is mounted here the machine does not see."""
    _check(libc.unshare(CLONE_NEWNS), "unshare")
    _check(libc.mount(b"", b"/", b"", ctypes.c_ulong(MS_REC | MS_PRIVATE), b""), "cannot make the mounts private")


def enter(namespace: int) -> None:
    """setns(2); a process namespace is entered by our children only.

    Raises:
        LabError: The kernel refuses it.
    """
    _check(libc.setns(namespace, 0), "cannot enter the lab")


def _check(result: int, what: str) -> None:
    if result == -1:
        raise LabError(f"{what}: {os.strerror(ctypes.get_errno())}")


# --- processes -------------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A process that cannot be taken for a later one with the same id."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "Process":
        """The process that has this id now."""
        return cls(pid, int(_stat(pid)[19] or -1))

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not: nobody may be there to reap it."""
        words = _stat(self.pid)
        return words[19] == str(self.started) and words[0] not in ("Z", "X")


def _stat(pid: int) -> list[str]:
    words = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return words if len(words) > 19 else [""] * 20


def fork(body: Callable[[], int]) -> int:
    """Start a child that does body and ends with its exit code; return its id.

    Nothing gets out of the child into its parent's code: what fails is printed, with exit code 126.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 126
    try:
        code = body()
    except BaseException:  # noqa: BLE001 (the outermost frame of this process)
        traceback.print_exc()
    os._exit(code)


def die_with_parent() -> None:
    """Have the kernel kill us when our parent ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
