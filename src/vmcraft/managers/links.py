"""Changed symlinks, taken into the change set: compared with the disk first, declared last."""

import anyio

from vmcraft.changes.change_set import ChangeSet
from vmcraft.errors import BusError, NoSuchUnit, OutcomeUnknown
from vmcraft.guest.guest import Guest
from vmcraft.guest.quarantine import is_held_back
from vmcraft.managers import enablement, sysv
from vmcraft.managers.live_units import LiveUnits
from vmcraft.model.services import Enablement, UnitFileChange, UnitFileState


class DeclaredLinks:
    """What the enablement calls have in common once the guest has done its part."""

    def __init__(self, guest: Guest, live: LiveUnits, changes: ChangeSet) -> None:
        self._guest = guest
        self._live = live
        self._changes = changes

    async def declared(
        self, unit: str, after: UnitFileState | None, changes: tuple[UnitFileChange, ...], call: str
    ) -> Enablement:
        """Compare the manager's word with the disk, and declare the unit's symlinks that differ from the source.

        Args:
            unit: Full name.
            after: State of its file, read back.
            changes: What the manager said it changed.
            call: Name of the call, for the change set.

        Raises:
            ReadBackDiffers: The disk says otherwise.
            NotOurs: The guest made it otherwise than a symlink in a place of ours.
        """
        if enablement.made(changes):
            self._live.changed()
        pending = await self._changes.pending()

        def declare() -> None:
            enablement.read_back(pending.layers, unit, changes)
            links = enablement.changed_links(pending, enablement.units_named(unit, changes))
            pending.declare(links, call=call, args=(unit,))

        try:
            await anyio.to_thread.run_sync(declare)
        except OSError as error:
            raise OutcomeUnknown(f"{unit}: what changed in the guest cannot be read back: {error}") from error
        return Enablement(
            unit=unit, changes=enablement.made(changes), unit_file_state=after, held_back=is_held_back(unit)
        )

    async def sysv(self, unit: str, script: str, verb: str) -> Enablement:
        """Let the guest enable or disable a unit that is generated from a SysV script, and declare its rc symlinks."""
        pending = await self._changes.pending()
        changes = await sysv.install(self._guest, pending.layers, unit, script, verb)
        self._live.changed()
        earlier = (path for path in pending.paths() if sysv.is_link_of(path, script))
        paths = sorted({change.path for change in changes} | set(earlier))
        await anyio.to_thread.run_sync(lambda: pending.declare(paths, call=f"service_{verb}", args=(unit,)))
        return Enablement(
            unit=unit, changes=changes, unit_file_state=UnitFileState.GENERATED, held_back=is_held_back(unit)
        )

    async def disable_dangling(self, missing: NoSuchUnit) -> Enablement:
        """Remove the symlinks to a unit that does not exist; raises `missing` where there are none."""
        try:
            changes = await self._guest.manager.disable_unit_files([missing.unit])
        except BusError as error:
            raise enablement.translated(error, missing.unit) from error
        if not enablement.made(changes):
            raise missing
        return await self.declared(missing.unit, None, changes, "service_disable")
