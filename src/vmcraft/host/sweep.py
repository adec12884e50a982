"""What a killed agent left behind: guests without a living owner, their directories, units, and traces below /run.

systemd ends such guests by itself (their units are bound to the agent's lease); this removes the rest.
"""

import os
from dataclasses import dataclass

import anyio

from vmcraft.errors import BusError
from vmcraft.host import overlay, syscalls
from vmcraft.host.host_bus import HostBus
from vmcraft.host.nspawn import LEASE_PREFIX, UNIT_PREFIX
from vmcraft.host.stop import NSPAWN_DIRS, stop
from vmcraft.model.services import ActiveState


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What was removed.

    Attributes:
        guests: Machines whose owner is dead.
        kept: Machines whose owner lives.
    """

    guests: tuple[str, ...]
    kept: tuple[str, ...]


async def sweep(host: HostBus, *, state_dir: str = overlay.STATE_DIR) -> Swept:
    """Remove every guest whose owner is dead, and all its traces; guests of living owners are left alone."""
    guests = os.path.join(state_dir, overlay.GUESTS)
    swept: list[str] = []
    kept: list[str] = []
    started, leased = await _machines_of_units(host)
    # A guest of another state directory is known by its lease alone, which ends with its owner.
    strays = (started | _machines_below_run()) - leased
    for machine in sorted(_machines_below(guests) | strays):
        path = os.path.join(guests, machine)
        fd = overlay.lock(path)
        if fd is None and machine in _machines_below(guests):
            kept.append(machine)
            continue
        try:
            with anyio.CancelScope(shield=True):
                await stop(host, machine)
                await _forget(host, machine)
                await anyio.to_thread.run_sync(_remove, path)
        finally:
            if fd is not None:
                os.close(fd)
        swept.append(machine)
    return Swept(guests=tuple(swept), kept=tuple(kept))


def _machines_below(directory: str) -> set[str]:
    try:
        return {name for name in os.listdir(directory) if overlay.is_machine(name)}
    except FileNotFoundError:
        return set()


def _machines_below_run() -> set[str]:
    return {machine for directory in NSPAWN_DIRS for machine in _machines_below(directory)}


async def _machines_of_units(host: HostBus) -> tuple[set[str], set[str]]:
    """The machines that have units of ours, and those of them whose lease has not ended."""
    started: set[str] = set()
    leased: set[str] = set()
    for row in await host.systemd.list_units_by_patterns([], [f"{UNIT_PREFIX}*.service", f"{LEASE_PREFIX}*.service"]):
        machine = row.name.removesuffix(".service").removeprefix(UNIT_PREFIX).removeprefix(LEASE_PREFIX)
        if overlay.is_machine(machine):
            started.add(machine)
            if row.name.startswith(LEASE_PREFIX) and row.active is ActiveState.ACTIVE:
                leased.add(machine)
    return started, leased


async def _forget(host: HostBus, machine: str) -> None:
    """A machine that machined still lists although its unit is gone."""
    if machine in await host.machines.list_machines():
        try:
            await host.machines.terminate_machine(machine)
        except BusError:
            if machine in await host.machines.list_machines():
                raise


def _remove(path: str) -> None:
    for point in _mounts_below(path):
        syscalls.unmount(os.fsencode(point), lazy=True)
    overlay.remove(path)


def _mounts_below(path: str) -> list[str]:
    """Mount points below a directory, deepest first; from the kernel's table, since stat fails on a dead mount."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        points = [line.split(" ")[4].encode().decode("unicode_escape") for line in table]
    return sorted((point for point in points if point.startswith(path + "/")), key=len, reverse=True)
