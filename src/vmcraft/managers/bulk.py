"""Many names, one call each: the manager's own bulk methods hide which name failed, or do half and refuse."""

from collections.abc import Awaitable, Callable, Sequence

from vmcraft.errors import OutcomeUnknown, Refused
from vmcraft.model.expect import expect
from vmcraft.model.outcome import Outcome
from vmcraft.model.services import BulkOutcome, Enablement, NamedOutcome


async def each(names: Sequence[str], call: Callable[[str], Awaitable[Enablement]]) -> BulkOutcome:
    """Call it for every name in order, and keep each name's own outcome.

    Raises:
        TypeError: Not a list or tuple of strings; a bare string is a likely slip.
    """
    expect(names, (list, tuple), "what a bulk call takes")
    for name in names:
        expect(name, str, "a unit name")
    return BulkOutcome(items=tuple([await _one(name, call) for name in dict.fromkeys(names)]))


async def _one(name: str, call: Callable[[str], Awaitable[Enablement]]) -> NamedOutcome:
    try:
        done = await call(name)
    except (Refused, OutcomeUnknown) as error:
        return NamedOutcome(name=name, outcome=error.outcome, error=error.keyed, remedy=error.remedy or None)
    return NamedOutcome(
        name=name,
        outcome=Outcome.DONE,
        unit_file_state=done.unit_file_state,
        changes=done.changes,
        warnings=done.warnings,
    )
