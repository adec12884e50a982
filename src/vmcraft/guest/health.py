"""How a boot ended: running, degraded, maintenance, still starting; and why."""

import time

import anyio

from vmcraft.bus.systemd1 import Manager
from vmcraft.model.guest import Job, Launched, SystemState

_NAMED = 5


async def end_of_boot(
    manager: Manager, *, machine: str, version: str, started: float, ready_s: float | None, limit: float
) -> Launched:
    """Wait for the end of a start-up that is READY, within the limit, and ask the guest's manager how it ended.

    Args:
        manager: The guest's.
        machine: Its name.
        version: Its manager's word for its version.
        started: When the boot was asked for, on the monotonic clock.
        ready_s: Seconds until READY; None when the limit is over already.
        limit: Seconds from `started`.
    """
    state = await manager.system_state()
    if state.booting and ready_s is not None:
        state = await _finished(manager, started + limit - time.monotonic())
    finished_s = time.monotonic() - started
    failed = tuple(sorted(row.name for row in await manager.list_units_by_patterns(["failed"], [])))
    hanging = await manager.list_jobs() if state.booting else ()
    return Launched(
        state=state,
        ready_s=ready_s,
        finished_s=None if state.booting else finished_s,
        machine=machine,
        systemd_version=version,
        failed=failed,
        hanging=hanging,
        reason=_reason(state, failed, hanging),
    )


async def _finished(manager: Manager, patience: float) -> SystemState:
    over = anyio.Event()
    async with manager.on(Manager.STARTUP_FINISHED, lambda *_times: over.set()):
        # Asked again once the signal is watched for: it may have come in between.
        state = await manager.system_state()
        if state.booting:
            with anyio.move_on_after(max(patience, 0)):
                await over.wait()
            state = await manager.system_state()
    return state


def _reason(state: SystemState, failed: tuple[str, ...], hanging: tuple[Job, ...]) -> str | None:
    match state:
        case SystemState.RUNNING:
            return None
        case SystemState.DEGRADED:
            return f"{_count(failed, 'unit')} failed: {_some(failed)}"
        case SystemState.MAINTENANCE:
            cause = f"; failed: {_some(failed)}" if failed else ""
            return f"the guest is in rescue or emergency mode{cause}"
        case SystemState.INITIALIZING | SystemState.STARTING:
            running = tuple(f"{job.unit} ({job.type})" for job in hanging if job.state == "running")
            return f"the boot waits for {_some(running)}" if running else "the boot has not finished"
        case _:
            return f"the guest's state is {state}"


def _count(names: tuple[str, ...], noun: str) -> str:
    return f"{len(names)} {noun}" + ("" if len(names) == 1 else "s")


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
