"""The unit graph, read live: what a unit needs and who needs it, what does not exist, and which failure came first."""

import dataclasses

from vmcraft.errors import BusError
from vmcraft.guest.guest import Guest
from vmcraft.model.services import ActiveState, LoadState
from vmcraft.model.units import Dependencies, UnitLinks

_DEPTH_LIMIT = 16
_UNITS_LIMIT = 200


async def dependencies(guest: Guest, unit: str) -> Dependencies:
    """The unit's dependency lists, and those named in them that the guest does not have."""
    links = await guest.unit(unit).links()
    forward = (
        links.requires,
        links.requisite,
        links.wants,
        links.binds_to,
        links.part_of,
        links.upholds,
        links.conflicts,
        links.after,
        links.before,
        links.triggers,
    )
    named = sorted({name for names in forward for name in names})
    lists = {field.name: getattr(links, field.name) for field in dataclasses.fields(links)}
    return Dependencies(**lists, missing=await _missing(guest, named))


async def _missing(guest: Guest, names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    rows = await guest.manager.list_units_by_names(names)
    return tuple(sorted({row.name for row in rows if row.load is LoadState.NOT_FOUND}))


async def first_failure(guest: Guest, unit: str) -> str | None:
    """The unit at the root of a `dependency` result, which the manager does not keep.

    Goes down what the unit requires, through units that were not started for the same reason, to one that failed
    itself; None when none is found.
    """
    seen: set[str] = {unit}
    level = [unit]
    for _ in range(_DEPTH_LIMIT):
        needed = [name for name in await _needed(guest, level) if name not in seen]
        for name in needed:
            shown = await guest.unit(name).shown()
            # A device that is not there has no failure of its own: its job just timed out.
            absent = name.endswith(".device") and shown.active is ActiveState.INACTIVE
            if shown.active is ActiveState.FAILED or not shown.exists or absent:
                return name
        seen.update(needed)
        level = needed
        if not needed or len(seen) > _UNITS_LIMIT:
            return None
    return None


async def _needed(guest: Guest, units: list[str]) -> list[str]:
    names: list[str] = []
    for unit in units:
        try:
            links: UnitLinks = await guest.unit(unit).links()
        except BusError:
            continue
        names += [name for name in (*links.requires, *links.binds_to, *links.requisite) if name not in names]
    return names
