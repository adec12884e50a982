"""A booted guest: its leader, its connection, its version, and whether it still lives."""

import re
from dataclasses import dataclass

from vmcraft.bus.connection import Connection
from vmcraft.bus.jobs import Jobs
from vmcraft.bus.systemd1 import Manager, Unit
from vmcraft.guest.attach import GuestBus
from vmcraft.guest.enter import Leader
from vmcraft.host.overlay import GuestDirectory
from vmcraft.model.guest import Launched

_MAJOR = re.compile(r"\d{1,4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What the managers need of a booted guest.

    Attributes:
        source: The root on the host that it was booted from.
        directory: Its overlay on the host.
        bus: The way to its live systemd.
        first_boot: Whether the root's next boot is a first boot, which applies presets.
        launched: How its boot ended.
    """

    source: str
    directory: GuestDirectory
    leader: Leader
    bus: GuestBus
    first_boot: bool
    launched: Launched

    @property
    def machine(self) -> str:
        """The name under which the host's systemd-machined knows it."""
        return self.directory.machine

    @property
    def connection(self) -> Connection:
        """The connection to its manager."""
        return self.bus.connection

    @property
    def manager(self) -> Manager:
        """Its live systemd."""
        return self.bus.manager

    @property
    def jobs(self) -> Jobs:
        """Waits for that systemd's jobs."""
        return self.bus.jobs

    @property
    def references(self) -> bool:
        """Whether units can be kept loaded by a reference; systemd's private socket has none (RefUnit is refused)."""
        return self.connection.message_bus

    @property
    def version(self) -> int:
        """The major version of its systemd; 0 when its version is not a number."""
        return major(self.launched.systemd_version)

    @property
    def alive(self) -> bool:
        """Whether its PID 1 has not ended."""
        return self.leader.alive

    def unit(self, name: str) -> Unit:
        """The object of a unit, by name."""
        return Unit.named(self.connection, name)


def major(version: str) -> int:
    """The number that a systemd's version begins with; 0 when it begins with none."""
    match = _MAJOR.match(version)
    return int(match[0]) if match else 0
