"""The host's own system bus: the manager that starts guests, and systemd-machined that knows them."""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vmcraft.bus import machine1, systemd1
from vmcraft.bus.connection import Connection, unix_connector
from vmcraft.bus.jobs import Jobs, watching
from vmcraft.errors import BusError, NoSystemd, OutcomeUnknown
from vmcraft.host.privileges import require_root

SYSTEM_BUS = "/run/dbus/system_bus_socket"
_NO_HOST = "use a host that systemd booted (from a checkout, scripts/lab run makes one); see vmcraft doctor"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBus:
    """What of the host we talk to."""

    systemd: systemd1.Manager
    machines: machine1.Manager
    jobs: Jobs


@contextlib.asynccontextmanager
async def host_bus() -> AsyncIterator[HostBus]:
    """A connection to the host's system bus, for as long as a guest (or a sweep) needs it.

    Raises:
        NotPrivileged: We are not root.
        NoSystemd: This host was not booted by systemd, its bus does not answer, or it has no machined.
    """
    _refuse_unfit()
    connection = Connection(unix_connector(SYSTEM_BUS), peer="the host's system bus", uid=os.geteuid())
    try:
        await connection.open()
    except (OSError, OutcomeUnknown) as error:
        raise NoSystemd(f"the host's system bus cannot be used: {error}", remedy=_NO_HOST) from error
    try:
        systemd = systemd1.Manager(connection)
        machines = machine1.Manager(connection)
        try:
            await systemd.subscribe()
            await machines.list_machines()
        except BusError as error:
            raise NoSystemd(f"systemd-machined does not answer: {error}", remedy=_MACHINED) from error
        async with watching(systemd) as jobs:
            yield HostBus(systemd=systemd, machines=machines, jobs=jobs)
    finally:
        connection.close()


def _refuse_unfit() -> None:
    require_root()
    if not os.path.isdir("/run/systemd/system"):
        raise NoSystemd("PID 1 of this host is not systemd", remedy=_NO_HOST)


_MACHINED = "apt-get install systemd-container"
