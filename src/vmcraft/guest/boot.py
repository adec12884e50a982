"""Start a guest, wait until it is ready or the limit is over, reach its manager, and end it in every case.

READY is not health (a guest in emergency mode is READY too), and a boot that hangs never gives it: so after READY, or
at the limit, the guest's own manager is asked.
"""

import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator

import anyio

from vmcraft.bus import machine1
from vmcraft.errors import BootFailed, BusError, CannotMapIds, ConnectionLost, GuestGone, first_error
from vmcraft.guest.attach import attached
from vmcraft.guest.console import Console, console
from vmcraft.guest.enter import SYSTEM_BUS, Leader, connect_inside
from vmcraft.guest.guest import Guest
from vmcraft.guest.health import end_of_boot
from vmcraft.guest.quarantine import write_hold
from vmcraft.host import overlay, stage
from vmcraft.host.host_bus import HostBus, host_bus
from vmcraft.host.nspawn import GuestUnit
from vmcraft.host.stop import stop
from vmcraft.host.sweep import sweep
from vmcraft.model.services import JobResult

BOOT_LIMIT_S = 120.0
BUS_PATIENCE_S = 2.0
"""How long after READY the guest's system bus may take to appear before systemd's private socket is used."""
_DOCTOR = "vmcraft doctor says what this host lacks"


@contextlib.asynccontextmanager
async def booted(
    source: str,
    *,
    has_bus: bool = True,
    first_boot: bool = False,
    private_users: bool = True,
    boot_limit: float = BOOT_LIMIT_S,
    state_dir: str = overlay.STATE_DIR,
) -> AsyncIterator[Guest]:
    """A guest, booted from a root directory on an overlay; ended and removed when the block ends.

    Args:
        source: Absolute path of the root; never written to.
        has_bus: Whether the root has a D-Bus daemon at all.
        first_boot: Whether the root has not been booted yet, as its machine-id says.
        private_users: Whether the guest gets a user namespace of its own.
        boot_limit: Seconds to wait for the end of the boot; the guest stays usable when it is over.
        state_dir: Where guests' directories lie.

    Raises:
        BootFailed: It ended before it was ready.
        BootHung: It neither became ready nor answered within the limits.
        CannotMapIds: The root's file system takes no id-mapped mounts.
        HostError: The host cannot boot guests.
    """
    async with contextlib.AsyncExitStack() as stack:
        host = await stack.enter_async_context(host_bus())
        await sweep(host, state_dir=state_dir)
        directory = await stack.enter_async_context(
            overlay.guest_directory(source, private_users=private_users, state_dir=state_dir)
        )
        write_hold(directory.hold)
        unit = GuestUnit(machine=directory.machine, directory=directory.path, source=source, base=directory.base)
        tail, printed = stack.enter_context(console())
        start = Start(host, unit, tail)
        leader = await stack.enter_async_context(start.running(printed, boot_limit=boot_limit, has_bus=has_bus))
        bus = await stack.enter_async_context(attached(leader, start.take_bus_socket()))
        launched = await end_of_boot(
            bus.manager,
            machine=unit.machine,
            version=bus.version,
            started=start.began,
            ready_s=start.ready_s,
            limit=boot_limit,
        )
        yield Guest(
            source=source, directory=directory, leader=leader, bus=bus, first_boot=first_boot, launched=launched
        )


class Start:
    """One start of a guest's unit, from the request to READY or to the limit, and its end.

    Attributes:
        began: When it was asked for, on the monotonic clock.
        ready_s: Seconds until READY; None when it did not come.
    """

    def __init__(self, host: HostBus, unit: GuestUnit, tail: Console) -> None:
        self._host = host
        self._unit = unit
        self._tail = tail
        self._leader: Leader | None = None
        self._bus_socket: socket.socket | None = None
        self._result: JobResult | None = None
        self.began = time.monotonic()
        self.ready_s: float | None = None

    def take_bus_socket(self) -> socket.socket | None:
        """The socket that was connected to the guest's system bus while it booted; the caller's from now on."""
        taken, self._bus_socket = self._bus_socket, None
        return taken

    @contextlib.asynccontextmanager
    async def running(self, printed: int, *, boot_limit: float, has_bus: bool) -> AsyncIterator[Leader]:
        """The guest's leader, at READY or at the limit; the guest is stopped when the block ends.

        Args:
            printed: Descriptor that takes what the guest prints; it is closed here.
            boot_limit: Seconds.
            has_bus: Whether to wait for the guest's system bus.
        """
        lease, held = os.pipe2(os.O_CLOEXEC)
        ours = [printed, lease]
        try:
            with first_error(), anyio.move_on_after(boot_limit):
                await self._start(ours, has_bus=has_bus)
            yield self._at_ready_or_limit(boot_limit)
        finally:
            with anyio.CancelScope(shield=True):
                await stop(self._host, self._unit.machine)
            for fd in (*ours, held):
                os.close(fd)
            if self._leader is not None:
                os.close(self._leader.pidfd)
            if self._bus_socket is not None:
                self._bus_socket.close()

    async def _start(self, handed_on: list[int], *, has_bus: bool) -> None:
        """Start the unit and wait for READY; connect to the guest's bus meanwhile, so that this costs no time."""
        machine_path = ""
        appeared, ready, reached = anyio.Event(), anyio.Event(), anyio.Event()

        def machine_new(name: str, path: str) -> None:
            nonlocal machine_path
            if name == self._unit.machine:
                machine_path = path
                appeared.set()

        async def unit_started() -> None:
            await self._unit_started(handed_on)
            if self.ready_s is None:
                group.cancel_scope.cancel()
            ready.set()

        async def bus_reached(leader: Leader) -> None:
            # Its own limit is the scope around us: the boot's, and a short patience once the guest is READY.
            with contextlib.suppress(ConnectionLost, GuestGone):
                self._bus_socket = await connect_inside(leader, SYSTEM_BUS, patience=3600)
            reached.set()

        async with (
            self._host.machines.on(machine1.Manager.MACHINE_NEW, machine_new),
            anyio.create_task_group() as group,
        ):
            group.start_soon(unit_started)
            await appeared.wait()
            self._leader = await self._held_leader(machine_path)
            if has_bus:
                group.start_soon(bus_reached, self._leader)
            await ready.wait()
            if has_bus:
                with anyio.move_on_after(BUS_PATIENCE_S):
                    await reached.wait()
            group.cancel_scope.cancel()

    async def _unit_started(self, handed_on: list[int]) -> None:
        unit = self._unit
        request = self._host.systemd.start_transient_unit(
            unit.unit,
            unit.settings(console=0),
            auxiliary=[(unit.lease, unit.lease_settings(held_open=1))],
            fds=handed_on,
        )
        what = f"the start of {unit.unit}"
        try:
            self._result = await self._host.jobs.run(request, what=what, limit=float("inf"), cancel=False)
        except BusError as error:
            raise BootFailed(f"the host's systemd does not start the guest: {error}", remedy=_DOCTOR) from error
        if self._result is JobResult.DONE:
            self.ready_s = time.monotonic() - self.began

    async def _held_leader(self, machine_path: str) -> Leader:
        machine = machine1.Machine(self._host.machines.connection, machine_path)
        pid = await machine.leader()
        leader = Leader.of(pid)
        # The process id could have been used again before we held it: it is the leader if machined still says so.
        if await machine.leader() != pid:
            os.close(leader.pidfd)
            raise GuestGone("the guest ended while it was started")
        return leader

    def _at_ready_or_limit(self, boot_limit: float) -> Leader:
        if self._leader is not None and self._result in (None, JobResult.DONE):
            return self._leader
        said = self._tail.last_lines()
        if self._leader is None and stage.CANNOT_MAP_TEXT in said:
            raise CannotMapIds(
                said.removeprefix(stage.CANNOT_MAP_TEXT),
                remedy="copy the root to ext4, xfs, btrfs or tmpfs, or boot it without a private user namespace",
            )
        how = (
            f"its unit's start ended as {self._result}" if self._result else f"it did not start within {boot_limit:g} s"
        )
        raise BootFailed(f"the guest did not boot: {how}" + (f"; it printed:\n{said}" if said else ""), remedy=_DOCTOR)
