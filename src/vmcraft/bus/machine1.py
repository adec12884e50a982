"""org.freedesktop.machine1 on the host: which machine is which process.

Source of every member: org.freedesktop.machine1(5).
"""

from vmcraft.bus.connection import Connection
from vmcraft.bus.interface import Interface, Method, Property, Signal

BUS_NAME = "org.freedesktop.machine1"
MANAGER_PATH = "/org/freedesktop/machine1"


class Manager(Interface):
    """org.freedesktop.machine1.Manager."""

    name = "org.freedesktop.machine1.Manager"

    GET_MACHINE = Method("GetMachine", takes="s", gives="o")
    LIST_MACHINES = Method("ListMachines", gives="a(ssso)")
    TERMINATE_MACHINE = Method("TerminateMachine", takes="s")

    MACHINE_NEW = Signal("MachineNew", "so")

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, BUS_NAME, MANAGER_PATH)

    async def get_machine(self, name: str) -> "Machine":
        """The machine of that name."""
        return Machine(self.connection, await self.call(self.GET_MACHINE, name))

    async def list_machines(self) -> tuple[str, ...]:
        """The names of all machines."""
        return tuple(name for name, _class, _service, _path in await self.call(self.LIST_MACHINES))

    async def terminate_machine(self, name: str) -> None:
        """Kill a machine's processes at once."""
        await self.call(self.TERMINATE_MACHINE, name)


class Machine(Interface):
    """org.freedesktop.machine1.Machine."""

    name = "org.freedesktop.machine1.Machine"

    LEADER = Property("Leader", "u")
    UNIT = Property("Unit", "s")

    def __init__(self, connection: Connection, path: str) -> None:
        super().__init__(connection, BUS_NAME, path)

    async def leader(self) -> int:
        """The process id, on the host, of the machine's PID 1."""
        number: int = await self.get(self.LEADER)
        return number

    async def unit(self) -> str:
        """The host's unit that the machine runs in."""
        name: str = await self.get(self.UNIT)
        return name
