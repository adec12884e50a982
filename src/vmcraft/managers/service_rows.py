"""Rows and values of service answers, made from what the manager shows. Arithmetic alone."""

import datetime

from vmcraft.guest.quarantine import is_held_back
from vmcraft.model.services import ActiveState, LoadState, ServiceRow, ServiceRun, UnitFileState
from vmcraft.model.units import UnitRow, UnitShown

_LOAD = "stub loaded not-found bad-setting error merged masked not-loaded"
_ACTIVE = "active reloading inactive failed activating deactivating maintenance refreshing"
_SUB = """dead condition start-pre start start-post running exited reload reload-signal reload-notify reload-post stop
    stop-watchdog stop-sigterm stop-sigkill stop-post final-watchdog final-sigterm final-sigkill
    dead-before-auto-restart failed-before-auto-restart dead-resources-pinned auto-restart auto-restart-queued cleaning
    mounting"""
_FILE = """enabled enabled-runtime linked linked-runtime alias masked-runtime static disabled indirect generated
    transient bad"""
STATE_WORDS = frozenset(f"{_LOAD} {_ACTIVE} {_SUB} {_FILE}".split())
"""Every load, active, sub and unit-file state of a service; source: systemctl --state=help of systemd 247 to 257."""


def loaded_row(row: UnitRow, state: UnitFileState | None) -> ServiceRow:
    """The row of a unit that is loaded."""
    return ServiceRow(
        name=row.name,
        load=row.load,
        active=row.active,
        sub=row.sub,
        description=row.description,
        unit_file_state=state,
        held_back=row.load is not LoadState.NOT_FOUND and is_held_back(row.name),
    )


def file_row(name: str, state: UnitFileState, real: UnitRow | None) -> ServiceRow:
    """The row of a unit file that is not loaded under its name; an alias shows the unit that it stands for."""
    return ServiceRow(
        name=name,
        load=real.load if real else LoadState.NOT_LOADED,
        active=real.active if real else ActiveState.INACTIVE,
        sub=real.sub if real else "dead",
        description=real.description if real else "",
        unit_file_state=state,
        held_back=is_held_back(name),
    )


def not_run(shown: UnitShown) -> ServiceRun:
    """A unit for which no job was made."""
    return ServiceRun(
        unit=shown.id,
        job_result=None,
        active=shown.active,
        sub=shown.sub,
        result=None,
        exec_main_code=None,
        exec_main_status=None,
        held_back=is_held_back(shown.id),
    )


def moment(usec: int) -> datetime.datetime | None:
    """A time of the manager's, in UTC; None for never, and for what is no time."""
    try:
        return datetime.datetime.fromtimestamp(usec / 1e6, tz=datetime.UTC) if usec else None
    except (ValueError, OverflowError, OSError):
        return None
