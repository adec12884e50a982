"""A change of symlinks, from the request to the change set: compared with the disk first, declared last.

One at a time, and honest when it fails: what a refused change has changed all the same is declared and named.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from vmcraft.changes.change_set import ChangeSet
from vmcraft.changes.pending import PendingChanges
from vmcraft.errors import BusError, NoSuchUnit, OutcomeUnknown, ReadBackDiffers, VMCraftError
from vmcraft.guest.guest import Guest
from vmcraft.guest.quarantine import is_held_back
from vmcraft.managers import enablement, sysv
from vmcraft.managers.live_units import LiveUnits
from vmcraft.model.services import Enablement, UnitFileChange, UnitFileState

T = TypeVar("T")
Links = tuple[UnitFileChange, ...]
Ask = Callable[[], Awaitable[Links]]
Judge = Callable[[UnitFileState | None], VMCraftError | None]


class DeclaredLinks:
    """What the enablement calls have in common."""

    def __init__(self, guest: Guest, live: LiveUnits, changes: ChangeSet) -> None:
        self._guest = guest
        self._live = live
        self._changes = changes
        self._one_at_a_time = anyio.Lock()

    async def change(self, unit: str, call: str, ask: Ask, judge: Judge) -> Enablement:
        """Let the manager change a unit's symlinks, read the state back, compare with the disk, and declare.

        Args:
            unit: Full name.
            call: Name of the call, for the change set.
            ask: Makes the manager do it; answers what it says it changed.
            judge: What is wrong with the state that was read back; None when nothing is.

        Raises:
            Refused: The manager refused, and nothing changed.
            OutcomeUnknown: It failed and symlinks changed all the same, or the disk says otherwise than the manager.
            NotOurs: Unit files lie where no change may be written.
        """
        async with self._one_at_a_time:
            pending = await self._changes.pending()
            await _read(unit, lambda: enablement.refuse_foreign(pending.layers))
            links: Links = ()
            after: UnitFileState | None = None
            try:
                links = await ask()
                after = await self._live.file_state(unit)
                failure = judge(after)
            except BusError as error:
                failure = enablement.translated(error, unit)
            if failure is not None:
                self._live.changed()
            elif enablement.made(links):
                self._live.changed(enablement.touched(unit, links))
            if failure is not None:
                raise await self._after_all(pending, unit, call, links, failure)
            await _read(unit, lambda: _declare(pending, unit, call, links))
        return Enablement(
            unit=unit, changes=enablement.made(links), unit_file_state=after, held_back=is_held_back(unit)
        )

    async def _after_all(
        self, pending: PendingChanges, unit: str, call: str, links: Links, failure: VMCraftError
    ) -> VMCraftError:
        """The failure; unknown in place of refused where symlinks have changed all the same, which are declared."""

        def declare() -> list[str]:
            named = enablement.units_named(unit, links)
            news = [path for path in enablement.changed_links(pending, named) if pending.is_news(path)]
            pending.declare(news, call=call, args=(unit,))
            return news

        news = await _read(unit, declare)
        if not news or isinstance(failure, OutcomeUnknown):
            return failure
        return OutcomeUnknown(
            f"{failure.text}; but these symlinks were changed: {', '.join(news[:5])}",
            remedy="look at diff, and discard if they are not wanted",
        )

    async def still_pulled_in(self, unit: str) -> ReadBackDiffers | None:
        """What is wrong with a disabled unit that a symlinked directory still pulls in; None when nothing does."""
        pending = await self._changes.pending()
        path = await _read(unit, lambda: enablement.still_pulled_in(pending.layers, unit))
        return ReadBackDiffers(unit, wanted="disabled", found=f"pulled in by {path}") if path else None

    async def sysv(self, unit: str, script: str, verb: str) -> Enablement:
        """Let the guest enable or disable a unit that is generated from a SysV script, and declare its rc symlinks."""
        async with self._one_at_a_time:
            pending = await self._changes.pending()

            def declare() -> None:
                pending.declare(sysv.changed_links(pending, script), call=f"service_{verb}", args=(unit,))

            try:
                changes = await sysv.install(self._guest, pending.layers, unit, script, verb)
            finally:
                # Also when it failed: what the guest's helper has changed until then was asked for by this call.
                self._live.changed()
                with anyio.CancelScope(shield=True):
                    await _read(unit, declare)
        return Enablement(
            unit=unit, changes=changes, unit_file_state=UnitFileState.GENERATED, held_back=is_held_back(unit)
        )

    async def disable_dangling(self, missing: NoSuchUnit) -> Enablement:
        """Remove the symlinks to a unit that does not exist; raises `missing` where there are none."""

        async def ask() -> Links:
            links = await self._guest.manager.disable_unit_files([missing.unit])
            if not enablement.made(links):
                raise missing
            return links

        return await self.change(missing.unit, "service_disable", ask, lambda _after: None)


def _declare(pending: PendingChanges, unit: str, call: str, links: Links) -> None:
    enablement.read_back(pending.layers, unit, links)
    named = enablement.units_named(unit, links)
    pending.declare(enablement.changed_links(pending, named), call=call, args=(unit,))


async def _read(unit: str, function: Callable[[], T]) -> T:
    """Run it in a thread: it walks directories and hashes files."""
    try:
        return await anyio.to_thread.run_sync(function)
    except OSError as error:
        raise OutcomeUnknown(f"{unit}: what changed in the guest cannot be read back: {error}") from error
