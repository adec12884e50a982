"""Roots that a benchmark may use: private copies of the tests' planted roots, and their removal.

Knows where they lie and who owns them; one benchmark runs at a time.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import guest_roots

HERE = guest_roots.CACHE / "bench"
UNIT_PREFIX = "vmbench-"
RESTARTED = "often-started.service"
"""A service of ours: systemd refuses the sixth start of a usual one within ten seconds."""
ROWS = 150
"""Services that a guest shall have at least, for list_services."""
MACHINE_ID = "5f0c1e9d2b7a4c3e8d6f0a1b2c3d4e5f\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """The roots of one release.

    Attributes:
        release: Its name.
        source: What our guests are booted from; never written to.
        copies: The same content, for those who write into what they boot.
    """

    release: str
    source: str
    copies: tuple[str, ...]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold off every other benchmark, and remove what a killed one left, before and after."""
    HERE.mkdir(parents=True, exist_ok=True)
    with open(HERE / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _clear()
        try:
            yield
        finally:
            _clear()


@contextlib.contextmanager
def roots(release: str, copies: int) -> Iterator[Roots]:
    """A release's planted root with enough services, and so many private copies of it; removed when the block ends."""
    source = HERE / release
    private = tuple(f"{source}-{number}" for number in range(copies))
    try:
        copy(guest_roots.planted(release), source)
        _plant(source)
        for path in private:
            copy(source, Path(path))
        yield Roots(release=release, source=str(source), copies=private)
    finally:
        for path in (str(source), *private):
            remove(path)


def copy(source: Path, target: Path) -> None:
    """A full copy: nothing that is written into it reaches the source."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)


@contextlib.contextmanager
def hard_linked(source: str) -> Iterator[str]:
    """A quick copy for a commit, which never writes into a file."""
    target = str(HERE / f"linked-{os.urandom(4).hex()}")
    try:
        subprocess.run(["cp", "-al", source, target], check=True)
        yield target
    finally:
        remove(target)


def remove(path: str) -> None:
    """Remove a copy, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path)


def _plant(root: Path) -> None:
    """An installed machine has an id, and more services than a minimal root."""
    (root / "etc/machine-id").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text(MACHINE_ID)
    (root / "lib/systemd/system" / RESTARTED).write_text(f"[Unit]\nStartLimitIntervalSec=0\n{guest_roots.SLEEP}")
    units = [root / "lib/systemd/system", root / "etc/systemd/system"]
    there = {path.name for directory in units for path in directory.glob("*.service")}
    for number in range(max(0, ROWS - len(there))):
        (units[0] / f"filler-{number}.service").write_text(guest_roots.SLEEP + guest_roots.WANTED)


def _clear() -> None:
    subprocess.run(["systemctl", "stop", f"{UNIT_PREFIX}*"], check=False, capture_output=True)
    for path in HERE.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
