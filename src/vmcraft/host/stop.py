"""End a guest: a clean power-off within its limit, then a kill; and what systemd leaves behind of a killed nspawn."""

import contextlib
import os

from vmcraft.bus.systemd1 import Manager
from vmcraft.errors import BusError, HostError, OutcomeUnknown
from vmcraft.host import syscalls
from vmcraft.host.host_bus import HostBus
from vmcraft.host.nspawn import LEASE_PREFIX, STOP_LIMIT_S, UNIT_PREFIX

_SLACK_S = 5.0
_KILL_LIMIT_S = 10.0
_SIGKILL = 9
_NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
NSPAWN_DIRS = ("/run/systemd/nspawn/propagate", "/run/systemd/nspawn/unix-export")


async def stop(host: HostBus, machine: str) -> None:
    """Stop a guest's units and wait until nothing of them runs; one that is gone already is fine.

    Raises:
        HostError: It could not be ended, also by a kill.
    """
    unit = f"{UNIT_PREFIX}{machine}.service"
    try:
        await _stop_unit(host, unit, STOP_LIMIT_S + _SLACK_S)
    except OutcomeUnknown:
        await _kill(host.systemd, unit)
        try:
            await _stop_unit(host, unit, _KILL_LIMIT_S)
        except OutcomeUnknown as error:
            raise HostError(f"{unit} could not be ended: {error}", remedy=f"systemctl status {unit}") from error
    with contextlib.suppress(OutcomeUnknown):
        await _stop_unit(host, f"{LEASE_PREFIX}{machine}.service", _KILL_LIMIT_S)
    remove_leftovers(machine)


async def _stop_unit(host: HostBus, unit: str, limit: float) -> None:
    try:
        await host.jobs.run(host.systemd.stop_unit(unit), what=f"the stop of {unit}", limit=limit)
    except BusError as error:
        if error.name != _NO_SUCH_UNIT:
            raise


async def _kill(systemd: Manager, unit: str) -> None:
    with contextlib.suppress(BusError):
        await systemd.kill_unit(unit, "all", _SIGKILL)


def remove_leftovers(machine: str) -> None:
    """Remove what a killed nspawn leaves below /run: the next start under the same name would be refused for it."""
    for parent in NSPAWN_DIRS:
        path = os.path.join(parent, machine)
        with contextlib.suppress(OSError):
            syscalls.unmount(os.fsencode(path), lazy=True)
        with contextlib.suppress(OSError):
            os.rmdir(path)
