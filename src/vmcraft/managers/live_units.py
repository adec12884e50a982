"""A guest's units, never read staler than our own last change; and the cached table of its unit files.

PID 1 reads every unit file again to list them (40-70 ms), so the table is kept until the guest's own signals, or a
change of ours, say that it is old. A reload costs 70-100 ms, so it is done once, before the next call that needs it.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from collections.abc import Set as AbstractSet

import anyio

from vmcraft.bus.systemd1 import Manager, Service
from vmcraft.codec import unit_name
from vmcraft.errors import BusError, NoSuchUnit, OutcomeUnknown, Refused, first_error
from vmcraft.guest.guest import Guest
from vmcraft.model.services import UnitFileState
from vmcraft.model.units import ServiceShown, UnitFileRow, UnitShown

_FILE_NOT_FOUND = "org.freedesktop.DBus.Error.FileNotFound"
_NO_SUCH_FILE = "System.Error.ENOENT"
_INVALID_ARGS = "org.freedesktop.DBus.Error.InvalidArgs"
_ALIAS_LIMIT = 256
_GIVE_BACK_LIMIT_S = 5.0


class LiveUnits:
    """Made by `live_units`, for the life of a guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._manager = guest.manager
        self._referenced: dict[str, int] = {}
        self._stale = False
        self._stale_units: frozenset[str] | None = frozenset()
        # Grows with each change: a table that was asked for before it must not be kept after it.
        self._changes = 0
        self._reloading = anyio.Lock()
        self._table: dict[str, UnitFileState] | None = None
        self._aliases: dict[str, str] = {}
        self._instances: dict[str, UnitFileState | None] = {}
        self._generation = guest.connection.generation

    # --- freshness

    def changed(self, units: AbstractSet[str] | None = None) -> None:
        """Symlinks or files of units changed: what the manager has loaded is old, and so is the table.

        Args:
            units: Those whose own properties can be old now; None for all.
        """
        self._stale = True
        self._stale_units = None if units is None or self._stale_units is None else self._stale_units | units
        self.files_changed()

    def files_changed(self, *_values: object) -> None:
        """UnitFilesChanged and Reloading: somebody changed unit files."""
        self._changes += 1
        self._table = None

    async def fresh(self) -> None:
        """Let the manager reload, if something changed since it last did."""
        async with self._reloading:
            if self._stale:
                await self._reload()

    async def reload(self) -> float:
        """Let the manager read everything again; answers how many seconds that took."""
        async with self._reloading:
            return await self._reload()

    async def _reload(self) -> float:
        before = time.monotonic()
        # Unset first: what changes while the manager reads needs the next reload.
        self._stale, self._stale_units = False, frozenset()
        try:
            await self._manager.reload()
        except BaseException:
            self._stale, self._stale_units = True, None
            raise
        self.files_changed()
        return time.monotonic() - before

    # --- one unit

    @contextlib.asynccontextmanager
    async def referenced(self, unit: str) -> AsyncIterator[None]:
        """Keep the unit loaded, and with it how its last run went: systemd forgets a oneshot when it succeeded.

        One reference for all who want it at once: PID 1 of systemd 247 stops answering when a connection that holds
        several references to one unit gives one back.
        """
        if not self._guest.references:
            yield
            return
        self._referenced[unit] = self._referenced.get(unit, 0) + 1
        try:
            if self._referenced[unit] == 1:
                # A masked unit takes no reference; one that runs all the same can be stopped.
                with contextlib.suppress(BusError):
                    await self._manager.ref_unit(unit)
            yield
        finally:
            self._referenced[unit] -= 1
            if not self._referenced[unit]:
                del self._referenced[unit]
                with anyio.move_on_after(_GIVE_BACK_LIMIT_S, shield=True), contextlib.suppress(Refused, OutcomeUnknown):
                    await self._manager.unref_unit(unit)

    async def shown(self, unit: str) -> UnitShown:
        """The unit's properties, after a reload where one is due.

        Raises:
            NoSuchUnit: The guest knows no such unit.
        """
        await self.fresh()
        shown = await self._guest.unit(unit).shown()
        if not shown.exists:
            raise NoSuchUnit(unit)
        return shown

    async def shown_alone(self, unit: str) -> UnitShown:
        """The same, with a reload only where the unit itself can be old: what it pulls in does not matter here."""
        if self._stale_units is not None and unit not in self._stale_units:
            shown = await self._guest.unit(unit).shown()
            # systemd 257 says so of every unit once any file changed: then it is not the unit that is old.
            if shown.exists and shown.id not in self._stale_units and not (self._stale and shown.need_daemon_reload):
                return shown
        return await self.shown(unit)

    async def service(self, unit: str) -> ServiceShown | None:
        """The properties that only a service has; None for a unit of another type."""
        if unit_name.kind(unit) != "service":
            return None
        return await Service(self._guest.connection, self._guest.unit(unit).path).shown()

    async def file_state(self, unit: str) -> UnitFileState | None:
        """The state of the unit's file as it is on disk now; None when there is no such file."""
        try:
            return await self._manager.get_unit_file_state(unit)
        except BusError as error:
            if error.name in (_FILE_NOT_FOUND, _NO_SUCH_FILE):
                return None
            # A file that is no unit file at all: systemd lists it as bad, but refuses to name its state.
            if error.name == _INVALID_ARGS:
                return UnitFileState.BAD
            raise

    async def real_name(self, unit: str) -> str:
        """The name that the unit has itself, when `unit` may be an alias of it."""
        shown = await self.shown(unit)
        return shown.id if unit_name.is_valid(shown.id) else unit

    # --- the table of services' files

    async def table(self) -> dict[str, UnitFileState]:
        """Every service's unit file by name, with its state; from the cache while nothing changed."""
        if self._generation != self._guest.connection.generation:
            self._generation = self._guest.connection.generation
            self._table = None
        if self._table is not None:
            return self._table
        changes = self._changes
        rows = await self._manager.list_unit_files_by_patterns([], ["*.service"])
        table = {row.name: row.state for row in rows if unit_name.is_valid(row.name)}
        self._aliases = await self._resolved(rows)
        self._instances = {}
        if changes == self._changes:
            self._table = table
        return table

    def listed_state(self, unit: str, table: Mapping[str, UnitFileState]) -> UnitFileState | None:
        """The file state of a loaded unit, from the table, or as it was learned of an instance."""
        return table[unit] if unit in table else self._instances.get(unit)

    async def learn_instances(self, units: Iterable[str]) -> None:
        """Ask for the file states of loaded instances, which are not in the table; all at once, and once."""
        table = await self.table()
        unknown = [
            unit
            for unit in units
            if unit not in table and unit not in self._instances and unit_name.template_of(unit) in table
        ]

        async def ask(unit: str) -> None:
            self._instances[unit] = await self.file_state(unit)

        with first_error():
            async with anyio.create_task_group() as group:
                for unit in unknown:
                    group.start_soon(ask, unit)

    def alias_targets(self) -> dict[str, str]:
        """Alias to the real unit's name, for every alias in the table that `table` gave last."""
        return self._aliases

    async def _resolved(self, rows: list[UnitFileRow]) -> dict[str, str]:
        aliases = [row.name for row in rows if row.state is UnitFileState.ALIAS and not unit_name.is_template(row.name)]
        valid = [alias for alias in aliases if unit_name.is_valid(alias)][:_ALIAS_LIMIT]
        # A row for each name, in the order of the names, with the unit's own name in it.
        found = await self._manager.list_units_by_names(valid) if valid else []
        return {alias: row.name for alias, row in zip(valid, found, strict=False)}


@contextlib.asynccontextmanager
async def live_units(guest: Guest) -> AsyncIterator[LiveUnits]:
    """The guest's units, with the signals that say when the table is old."""
    live = LiveUnits(guest)
    async with (
        guest.manager.on(Manager.UNIT_FILES_CHANGED, live.files_changed),
        guest.manager.on(Manager.RELOADING, live.files_changed),
    ):
        yield live
