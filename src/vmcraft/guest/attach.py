"""A booted guest's manager, reached: over its system bus, or over systemd's private socket where there is none.

The private socket is the manager alone, up before the bus and without it: no references to units, no other services.
"""

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio

from vmcraft.bus.connection import Connection, Connector
from vmcraft.bus.interface import introspect
from vmcraft.bus.jobs import Jobs, watching
from vmcraft.bus.systemd1 import BUS_NAME, MANAGER_PATH, Manager
from vmcraft.errors import BootHung, BusError, GuestGone, OutcomeUnknown
from vmcraft.guest.enter import PRIVATE_SOCKET, SYSTEM_BUS, Leader, connect_inside

ANSWER_LIMIT_S = 10.0
"""How long a guest that should be up may take to answer at all."""
RECONNECT_PATIENCE_S = 5.0
_NO_ANSWER = (OutcomeUnknown, BusError, GuestGone, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestBus:
    """The way to a guest's manager.

    Attributes:
        version: The manager's own word for its version.
    """

    connection: Connection
    manager: Manager
    jobs: Jobs
    version: str


@contextlib.asynccontextmanager
async def attached(leader: Leader, bus_socket: socket.socket | None) -> AsyncIterator[GuestBus]:
    """A connection to the guest's manager; closed when the block ends.

    Args:
        leader: The guest's PID 1.
        bus_socket: Connected to the guest's system bus already; None to use the private socket.

    Raises:
        BootHung: The guest answers on neither.
    """
    async with contextlib.AsyncExitStack() as stack:
        bus = await _over_system_bus(leader, bus_socket, stack) if bus_socket is not None else None
        yield bus or await _over_private_socket(leader, stack)


async def _over_system_bus(
    leader: Leader, bus_socket: socket.socket, stack: contextlib.AsyncExitStack
) -> GuestBus | None:
    """None when nobody answers there: a boot that hangs early has the bus's socket but no daemon behind it."""
    connection = Connection(_connector(leader, SYSTEM_BUS, bus_socket), peer="the guest's system bus")
    try:
        with anyio.fail_after(ANSWER_LIMIT_S):
            return await _manager(connection, stack)
    except _NO_ANSWER:
        connection.close()
        return None


async def _over_private_socket(leader: Leader, stack: contextlib.AsyncExitStack) -> GuestBus:
    connection = Connection(_connector(leader, PRIVATE_SOCKET, None), peer="the guest's systemd", message_bus=False)
    try:
        with anyio.fail_after(ANSWER_LIMIT_S):
            return await _manager(connection, stack)
    except _NO_ANSWER as error:
        raise BootHung(
            f"the guest runs, but its manager does not answer: {str(error) or 'no answer in time'}",
            remedy="raise boot_limit; if it still hangs, the root's systemd cannot run in a container here",
        ) from error


def _connector(leader: Leader, path: str, ready: socket.socket | None) -> Connector:
    """Connects inside the guest; the first time by the socket that is there already."""
    first = [ready] if ready is not None else []

    async def connect() -> socket.socket:
        if first:
            return first.pop()
        return await connect_inside(leader, path, patience=RECONNECT_PATIENCE_S)

    return connect


async def _manager(connection: Connection, stack: contextlib.AsyncExitStack) -> GuestBus:
    stack.callback(connection.close)
    await connection.open()
    manager = Manager(connection)
    members = await introspect(connection, BUS_NAME, MANAGER_PATH)
    manager.features = members.get(Manager.name, frozenset())
    await manager.subscribe()
    connection.on_reopened(lambda _connection: manager.subscribe())
    version = await manager.version()
    jobs = await stack.enter_async_context(watching(manager))
    return GuestBus(connection=connection, manager=manager, jobs=jobs, version=version)
