"""One job of the guest's manager, awaited, and what the unit is like after it, once that has settled."""

import dataclasses
from collections.abc import Awaitable, Callable

import anyio

from vmcraft.bus.properties import Properties
from vmcraft.errors import BusError, JobTimedOut, OutcomeUnknown, ProgramFailed, Refused
from vmcraft.guest.guest import Guest
from vmcraft.guest.journalctl import last_lines
from vmcraft.guest.quarantine import is_held_back
from vmcraft.managers.dependencies import first_failure
from vmcraft.managers.live_units import LiveUnits
from vmcraft.managers.start_verdict import translated
from vmcraft.model.services import ActiveState, JobResult, LogLine, ServiceRun
from vmcraft.model.units import ServiceShown, UnitShown

SETTLE_S = 0.1
"""How long a service is watched after its start, so that one that dies at once is not called started."""
JOB_LIMIT_S = 180.0
"""Longer than systemd's own default limits for a start (90 s) or a stop, so that systemd's verdict comes first."""
LOG_LINES = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of a job, as it will be answered, and what it is judged by."""

    run: ServiceRun
    shown: UnitShown
    service: ServiceShown | None


async def run_job(guest: Guest, live: LiveUnits, unit: str, ask: Callable[[str], Awaitable[str]]) -> Ran:
    """Ask for a job on a unit that exists, wait for it, and read the unit back after it has settled.

    Args:
        guest: A booted guest.
        live: Its units.
        unit: Full name.
        ask: The manager's method that makes the job.

    Raises:
        JobTimedOut: It still ran at the limit, and was cancelled.
        Refused: The manager made no job.
    """
    changed = anyio.Event()

    def wake() -> None:
        nonlocal changed
        changed.set()
        changed = anyio.Event()

    async with live.referenced(unit), Properties.watched(guest.unit(unit), wake):
        try:
            result = await guest.jobs.run(ask(unit), what=f"the job of {unit}", limit=JOB_LIMIT_S)
        except BusError as error:
            raise translated(error, unit) from error
        except JobTimedOut as error:
            raise await _named_in_front(guest, unit, error) from error
        shown = await guest.unit(unit).shown()
        with anyio.move_on_after(SETTLE_S):
            while shown.active is ActiveState.ACTIVE and shown.sub == "running":
                # Taken before the unit is read: a change in between must not be missed.
                event = changed
                shown = await guest.unit(unit).shown()
                await event.wait()
        service = await live.service(unit)
        shown = await guest.unit(unit).shown()
    run = ServiceRun(
        unit=unit,
        job_result=result,
        active=shown.active,
        sub=shown.sub,
        result=service.result if service is not None else None,
        exec_main_code=service.exec_main_code if service is not None else None,
        exec_main_status=service.exec_main_status if service is not None else None,
        dependency=await first_failure(guest, unit) if result is JobResult.DEPENDENCY else None,
        held_back=is_held_back(unit),
    )
    return Ran(run=run, shown=shown, service=service)


async def _named_in_front(guest: Guest, unit: str, error: JobTimedOut) -> JobTimedOut:
    """The same, with the jobs that run: in a guest whose boot hangs, the one that hangs is in front."""
    running = [job.unit for job in await guest.manager.list_jobs() if job.state == "running" and job.unit != unit]
    if not running:
        return error
    return JobTimedOut(
        f"{error.text}; these jobs run and may be in front: {', '.join(running[:5])}", remedy=error.remedy
    )


async def with_log(guest: Guest, run: ServiceRun) -> ServiceRun:
    """The same with the unit's last lines."""
    log, _error = await log_of(guest, run.unit)
    return dataclasses.replace(run, log=log)


async def log_of(guest: Guest, unit: str) -> tuple[tuple[LogLine, ...], str | None]:
    """The unit's last lines, or why there are none: a journal that cannot be read must not hide the rest."""
    try:
        return await last_lines(guest, unit, count=LOG_LINES), None
    except (ProgramFailed, OutcomeUnknown, Refused) as error:
        return (), error.keyed
