"""The other side of every ratio: systemd-nspawn as one would start it by hand, booted and un-booted."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from scripts.benchmarks.places import UNIT_PREFIX

NSPAWN = "/usr/bin/systemd-nspawn"
GONE_LIMIT_S = 30.0
BARE_COMMAND = (
    "systemd-run --service-type=notify -p NotifyAccess=all -p KillMode=mixed -p Delegate=yes "
    "systemd-nspawn --quiet --keep-unit --boot --notify-ready=yes --private-network -D COPY"
)


@dataclass(frozen=True, slots=True)
class Bare:
    """A root that is booted without us; its unit and its machine have the same name."""

    name: str

    def stop(self) -> float:
        """A clean power-off; answers the seconds until it is over."""
        begin = time.perf_counter()
        subprocess.run(["systemctl", "stop", self.name], check=True)
        return time.perf_counter() - begin

    def terminate(self) -> float:
        """A kill, by machinectl; answers the seconds until nothing of it runs."""
        begin = time.perf_counter()
        subprocess.run(["machinectl", "terminate", self.name], check=True)
        while is_running(self.name):
            if time.perf_counter() - begin > GONE_LIMIT_S:
                raise TimeoutError(f"{self.name} was terminated but still runs")
        return time.perf_counter() - begin


def is_running(name: str) -> bool:
    """Whether anything of a unit of the host still runs; `systemctl is-active` denies it while the unit is stopping."""
    show = ["systemctl", "show", "--property=ActiveState", "--value", name]
    state = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
    return state not in ("inactive", "failed")


def boot(root: str) -> tuple[Bare, float]:
    """Boot a private copy; answers when it is READY, with the seconds from the call on."""
    bare = Bare(UNIT_PREFIX + os.urandom(4).hex())
    words = BARE_COMMAND.removesuffix("COPY").split()
    options = [f"--unit={bare.name}", "--quiet", "--collect", "-p", "RuntimeMaxSec=600"]
    command = [words[0], *options, *words[1:], root, f"--machine={bare.name}"]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return bare, time.perf_counter() - begin


@contextlib.contextmanager
def booted(root: str) -> Iterator[tuple[Bare, float]]:
    """The same for a block; whoever has stopped it already need not say so."""
    bare, took = boot(root)
    try:
        yield bare, took
    finally:
        if is_running(bare.name):
            bare.stop()


def all_at_once(copies: Sequence[str]) -> tuple[float, float]:
    """Boot all copies in parallel; seconds until all are READY, and until all are powered off again."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(copies)) as pool:
        started = [bare for bare, _ in pool.map(boot, copies)]
    ready = time.perf_counter() - begin
    begin = time.perf_counter()
    subprocess.run(["systemctl", "stop", *(bare.name for bare in started)], check=True)
    return ready, time.perf_counter() - begin


def unbooted(root: str, words: Sequence[str]) -> tuple[float, int]:
    """One systemctl in a root that is not booted; its seconds and its exit status."""
    command = [NSPAWN, "-q", "-D", root, "systemctl", *words]
    begin = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - begin, done.returncode
