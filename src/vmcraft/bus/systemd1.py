"""org.freedesktop.systemd1: the manager, its units and its services; of the host and of guests alike.

Source of every member: org.freedesktop.systemd1(5). What a guest answers is its own word: signatures are checked below
us, and every row becomes a value here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from vmcraft.bus.connection import Connection
from vmcraft.bus.interface import Interface, Method, Property, Signal, Variant, value, variant
from vmcraft.bus.transport import REPLY_LIMIT_S
from vmcraft.codec import unit_name
from vmcraft.errors import ReplyMalformed
from vmcraft.model.guest import Job, SystemState
from vmcraft.model.printable import printable
from vmcraft.model.services import ActiveState, LoadState, UnitFileChange, UnitFileState
from vmcraft.model.units import Condition, ServiceShown, UnitFileRow, UnitLinks, UnitRow, UnitShown

BUS_NAME = "org.freedesktop.systemd1"
MANAGER_PATH = "/org/freedesktop/systemd1"
RELOAD_LIMIT_S = 180.0
"""Reload waits for the guest's generators; a big system may take tens of seconds."""
ROW_LIMIT = 20_000
"""Units or unit files of one guest that we take in."""
NOT_ACCOUNTED = 2**64 - 1

Setting = tuple[str, str, object]
"""A unit property to set: its name, its signature, its value."""


def exec_start(argv: Sequence[str]) -> Setting:
    """The setting that runs a program with its arguments taken literally.

    systemd expands $ in the arguments, also those that come over D-Bus; $$ is a $ for every version. The value's last
    member says that a failure counts.
    """
    return "ExecStart", "a(sasb)", [[argv[0], [argv[0], *(word.replace("$", "$$") for word in argv[1:])], False]]


def _bounded(rows: list[Any], what: str) -> list[Any]:
    if len(rows) > ROW_LIMIT:
        raise ReplyMalformed(f"the guest lists {len(rows)} {what}, more than {ROW_LIMIT}")
    return rows


def _names(rows: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(printable(name, limit=256) for name in rows))


def _unit_row(row: tuple[Any, ...]) -> UnitRow:
    name, description, load, active, sub, _following, _path, job_id, job_type, _job_path = row
    return UnitRow(
        name=printable(name, limit=256),
        description=printable(description),
        load=LoadState(printable(load, limit=64)),
        active=ActiveState(printable(active, limit=64)),
        sub=printable(sub, limit=64),
        job_id=job_id,
        job_type=printable(job_type, limit=64),
    )


def _changes(rows: list[tuple[str, str, str]]) -> tuple[UnitFileChange, ...]:
    return tuple(
        UnitFileChange(type=printable(kind, limit=64), path=printable(path), source=printable(source))
        for kind, path, source in _bounded(rows, "changed symlinks")
    )


class Manager(Interface):
    """org.freedesktop.systemd1.Manager."""

    name = "org.freedesktop.systemd1.Manager"

    LIST_UNITS = Method("ListUnits", gives="a(ssssssouso)")
    LIST_UNITS_BY_PATTERNS = Method("ListUnitsByPatterns", takes="asas", gives="a(ssssssouso)", since=230)
    LIST_UNITS_BY_NAMES = Method("ListUnitsByNames", takes="as", gives="a(ssssssouso)", since=231)
    LIST_UNIT_FILES_BY_PATTERNS = Method("ListUnitFilesByPatterns", takes="asas", gives="a(ss)", since=230)
    LIST_JOBS = Method("ListJobs", gives="a(usssoo)")
    LOAD_UNIT = Method("LoadUnit", takes="s", gives="o")
    GET_UNIT = Method("GetUnit", takes="s", gives="o")
    GET_UNIT_FILE_STATE = Method("GetUnitFileState", takes="s", gives="s")
    START_UNIT = Method("StartUnit", takes="ss", gives="o")
    STOP_UNIT = Method("StopUnit", takes="ss", gives="o")
    RESTART_UNIT = Method("RestartUnit", takes="ss", gives="o")
    KILL_UNIT = Method("KillUnit", takes="ssi")
    CANCEL_JOB = Method("CancelJob", takes="u")
    RESET_FAILED_UNIT = Method("ResetFailedUnit", takes="s")
    REF_UNIT = Method("RefUnit", takes="s", since=232)
    UNREF_UNIT = Method("UnrefUnit", takes="s", since=232)
    ENABLE = Method("EnableUnitFiles", takes="asbb", gives="ba(sss)")
    DISABLE = Method("DisableUnitFiles", takes="asb", gives="a(sss)")
    MASK = Method("MaskUnitFiles", takes="asbb", gives="a(sss)")
    PRESET = Method("PresetUnitFiles", takes="asbb", gives="ba(sss)")
    START_TRANSIENT_UNIT = Method("StartTransientUnit", takes="ssa(sv)a(sa(sv))", gives="o")
    SUBSCRIBE = Method("Subscribe")
    RELOAD = Method("Reload")

    VERSION = Property("Version", "s")
    SYSTEM_STATE = Property("SystemState", "s")

    JOB_REMOVED = Signal("JobRemoved", "uoss")
    UNIT_FILES_CHANGED = Signal("UnitFilesChanged", "")
    RELOADING = Signal("Reloading", "b")
    STARTUP_FINISHED = Signal("StartupFinished", "tttttt")

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, BUS_NAME, MANAGER_PATH)

    async def version(self) -> str:
        """The manager's version with what its distribution adds to it, as in `252.39-1~deb12u2`."""
        return printable(await self.get(self.VERSION), limit=128)

    async def system_state(self) -> SystemState:
        """The manager's own word for how the system is."""
        return SystemState(printable(await self.get(self.SYSTEM_STATE), limit=64))

    async def subscribe(self) -> None:
        """Ask for the manager's signals on this connection."""
        await self.call(self.SUBSCRIBE)

    async def list_units(self) -> list[UnitRow]:
        """All units that are loaded."""
        return [_unit_row(row) for row in _bounded(await self.call(self.LIST_UNITS), "units")]

    async def list_units_by_patterns(self, states: Sequence[str], patterns: Sequence[str]) -> list[UnitRow]:
        """Loaded units; a state is any load, active or sub state (unit-file states match nothing)."""
        rows = await self.call(self.LIST_UNITS_BY_PATTERNS, list(states), list(patterns))
        return [_unit_row(row) for row in _bounded(rows, "units")]

    async def list_units_by_names(self, names: Sequence[str]) -> list[UnitRow]:
        """The named units, loaded for this where they are not."""
        rows = await self.call(self.LIST_UNITS_BY_NAMES, list(names))
        return [_unit_row(row) for row in _bounded(rows, "units")]

    async def list_unit_files_by_patterns(self, states: Sequence[str], patterns: Sequence[str]) -> list[UnitFileRow]:
        """Unit files with their state; PID 1 reads every file for it, 40-70 ms for a common system."""
        rows = await self.call(self.LIST_UNIT_FILES_BY_PATTERNS, list(states), list(patterns))
        return [
            UnitFileRow(path=printable(path), state=UnitFileState(printable(state, limit=64)))
            for path, state in _bounded(rows, "unit files")
        ]

    async def list_jobs(self) -> tuple[Job, ...]:
        """The jobs that have not ended."""
        rows = _bounded(await self.call(self.LIST_JOBS), "jobs")
        return tuple(
            Job(
                id=number,
                unit=printable(unit, limit=256),
                type=printable(kind, limit=64),
                state=printable(state, limit=64),
            )
            for number, unit, kind, state, _path, _unit_path in rows
        )

    async def unit(self, name: str) -> "Unit":
        """The unit's object; loads it. Also given for a unit that does not exist: look at its LoadState."""
        return Unit(self.connection, await self.call(self.LOAD_UNIT, name))

    async def get_unit(self, name: str) -> "Unit":
        """The object of a unit that is loaded already."""
        return Unit(self.connection, await self.call(self.GET_UNIT, name))

    async def get_unit_file_state(self, name: str) -> UnitFileState:
        """The state as the files say now; the only read-back that holds after an enable or disable."""
        return UnitFileState(printable(await self.call(self.GET_UNIT_FILE_STATE, name), limit=64))

    async def start_unit(self, name: str, mode: str = "replace") -> str:
        """Make a start job; answers its object path."""
        path: str = await self.call(self.START_UNIT, name, mode)
        return path

    async def stop_unit(self, name: str, mode: str = "replace") -> str:
        """Make a stop job; answers its object path."""
        path: str = await self.call(self.STOP_UNIT, name, mode)
        return path

    async def restart_unit(self, name: str, mode: str = "replace") -> str:
        """Make a restart job; answers its object path."""
        path: str = await self.call(self.RESTART_UNIT, name, mode)
        return path

    async def kill_unit(self, name: str, whom: str, signal: int) -> None:
        """Send a signal to a unit's processes: `main`, `control` or `all`."""
        await self.call(self.KILL_UNIT, name, whom, signal)

    async def cancel_job(self, number: int) -> None:
        """Cancel a job by its number."""
        await self.call(self.CANCEL_JOB, number)

    async def reset_failed_unit(self, name: str) -> None:
        """Forget that a unit failed, so that it can be unloaded."""
        await self.call(self.RESET_FAILED_UNIT, name)

    async def ref_unit(self, name: str) -> None:
        """Keep a unit loaded, and with it its results, until unref_unit() or the connection's end."""
        await self.call(self.REF_UNIT, name)

    async def unref_unit(self, name: str) -> None:
        """Give back a reference."""
        await self.call(self.UNREF_UNIT, name)

    async def enable_unit_files(self, names: Sequence[str]) -> tuple[bool, tuple[UnitFileChange, ...]]:
        """Make the symlinks that [Install] asks for; answers whether there was such a section, and the symlinks.

        Says nothing about units that are static or wrongly written, and does all or nothing when a name is unknown.
        """
        installable, rows = await self.call(self.ENABLE, list(names), False, False)
        return installable, _changes(rows)

    async def disable_unit_files(self, names: Sequence[str], *, runtime: bool = False) -> tuple[UnitFileChange, ...]:
        """Remove the symlinks; silently passes over names that do not exist."""
        return _changes(await self.call(self.DISABLE, list(names), runtime))

    async def mask_unit_files(self, names: Sequence[str]) -> tuple[UnitFileChange, ...]:
        """Link the names to /dev/null; also names that do not exist, and the first of several before it refuses."""
        return _changes(await self.call(self.MASK, list(names), False, False))

    async def preset_unit_files(self, names: Sequence[str]) -> tuple[bool, tuple[UnitFileChange, ...]]:
        """Enable or disable as the distribution's preset files say."""
        installable, rows = await self.call(self.PRESET, list(names), False, False)
        return installable, _changes(rows)

    async def reload(self) -> None:
        """Run the generators and read all unit files again; the reply comes when it is over."""
        await self.call(self.RELOAD, limit=RELOAD_LIMIT_S)

    async def start_transient_unit(
        self,
        name: str,
        settings: Sequence[Setting],
        *,
        auxiliary: Sequence[tuple[str, Sequence[Setting]]] = (),
        fds: Sequence[int] = (),
    ) -> str:
        """Make a unit that lives until it ends, and start it; answers the job's object path.

        A value of type `h` in the settings is an index into `fds`, which stay the caller's to close.
        """

        def rows(of: Sequence[Setting]) -> list[list[object]]:
            return [[key, variant(signature, content)] for key, signature, content in of]

        path: str = await self.call(
            self.START_TRANSIENT_UNIT,
            name,
            "fail",
            rows(settings),
            [[other, rows(its)] for other, its in auxiliary],
            fds=fds,
            limit=REPLY_LIMIT_S,
        )
        return path


class Unit(Interface):
    """org.freedesktop.systemd1.Unit."""

    name = "org.freedesktop.systemd1.Unit"

    ID = Property("Id", "s")
    NAMES = Property("Names", "as")
    DESCRIPTION = Property("Description", "s")
    LOAD_STATE = Property("LoadState", "s")
    LOAD_ERROR = Property("LoadError", "(ss)")
    ACTIVE_STATE = Property("ActiveState", "s")
    SUB_STATE = Property("SubState", "s")
    UNIT_FILE_STATE = Property("UnitFileState", "s")
    UNIT_FILE_PRESET = Property("UnitFilePreset", "s")
    FRAGMENT_PATH = Property("FragmentPath", "s")
    SOURCE_PATH = Property("SourcePath", "s")
    DROP_IN_PATHS = Property("DropInPaths", "as")
    NEED_DAEMON_RELOAD = Property("NeedDaemonReload", "b")
    TRANSIENT = Property("Transient", "b")
    ACTIVE_ENTER = Property("ActiveEnterTimestamp", "t")
    INACTIVE_EXIT = Property("InactiveExitTimestamp", "t")
    CONDITION_RESULT = Property("ConditionResult", "b")
    CONDITION_TIME = Property("ConditionTimestamp", "t")
    ASSERT_RESULT = Property("AssertResult", "b")
    ASSERT_TIME = Property("AssertTimestamp", "t")
    CONDITIONS = Property("Conditions", "a(sbbsi)")
    ASSERTS = Property("Asserts", "a(sbbsi)")
    REQUIRES = Property("Requires", "as")
    REQUISITE = Property("Requisite", "as")
    WANTS = Property("Wants", "as")
    BINDS_TO = Property("BindsTo", "as")
    PART_OF = Property("PartOf", "as")
    UPHOLDS = Property("Upholds", "as", since=249)
    CONFLICTS = Property("Conflicts", "as")
    AFTER = Property("After", "as")
    BEFORE = Property("Before", "as")
    REQUIRED_BY = Property("RequiredBy", "as")
    WANTED_BY = Property("WantedBy", "as")
    BOUND_BY = Property("BoundBy", "as")
    TRIGGERS = Property("Triggers", "as")
    TRIGGERED_BY = Property("TriggeredBy", "as")

    LINKS: ClassVar[Mapping[str, Property]] = {
        "requires": REQUIRES,
        "requisite": REQUISITE,
        "wants": WANTS,
        "binds_to": BINDS_TO,
        "part_of": PART_OF,
        "upholds": UPHOLDS,
        "conflicts": CONFLICTS,
        "after": AFTER,
        "before": BEFORE,
        "required_by": REQUIRED_BY,
        "wanted_by": WANTED_BY,
        "bound_by": BOUND_BY,
        "triggers": TRIGGERS,
        "triggered_by": TRIGGERED_BY,
    }
    """Field of UnitLinks to the property that holds it."""

    def __init__(self, connection: Connection, path: str) -> None:
        super().__init__(connection, BUS_NAME, path)

    @classmethod
    def named(cls, connection: Connection, name: str) -> "Unit":
        """The unit's object by its name alone; reading a property of it loads the unit."""
        return cls(connection, unit_name.object_path(name))

    async def shown(self) -> UnitShown:
        """The unit's properties; loads the unit."""
        rows = await self.get_all()
        return UnitShown(
            id=_text(rows, self.ID, 256),
            names=_names(value(rows, self.NAMES, [])),
            description=_text(rows, self.DESCRIPTION),
            load=LoadState(_text(rows, self.LOAD_STATE, 64)),
            load_error=printable(value(rows, self.LOAD_ERROR, ("", ""))[1]),
            active=ActiveState(_text(rows, self.ACTIVE_STATE, 64)),
            sub=_text(rows, self.SUB_STATE, 64),
            unit_file_state=_text(rows, self.UNIT_FILE_STATE, 64),
            unit_file_preset=_text(rows, self.UNIT_FILE_PRESET, 64),
            fragment_path=_text(rows, self.FRAGMENT_PATH),
            source_path=_text(rows, self.SOURCE_PATH),
            drop_ins=tuple(printable(path) for path in value(rows, self.DROP_IN_PATHS, [])),
            triggered_by=_names(value(rows, self.TRIGGERED_BY, [])),
            requires=_names(value(rows, self.REQUIRES, [])),
            need_daemon_reload=value(rows, self.NEED_DAEMON_RELOAD, False),
            transient=value(rows, self.TRANSIENT, False),
            active_enter_usec=value(rows, self.ACTIVE_ENTER, 0),
            inactive_exit_usec=value(rows, self.INACTIVE_EXIT, 0),
            condition_result=value(rows, self.CONDITION_RESULT, False),
            condition_usec=value(rows, self.CONDITION_TIME, 0),
            assert_result=value(rows, self.ASSERT_RESULT, False),
            assert_usec=value(rows, self.ASSERT_TIME, 0),
            conditions=_conditions(value(rows, self.CONDITIONS, [])),
            asserts=_conditions(value(rows, self.ASSERTS, [])),
        )

    async def links(self) -> UnitLinks:
        """The unit's dependencies of every kind."""
        rows = await self.get_all()
        return UnitLinks(**{name: _names(value(rows, prop, [])) for name, prop in self.LINKS.items()})


class Service(Interface):
    """org.freedesktop.systemd1.Service; on the same object as the unit."""

    name = "org.freedesktop.systemd1.Service"

    TYPE = Property("Type", "s")
    RESULT = Property("Result", "s")
    MAIN_PID = Property("MainPID", "u")
    EXEC_MAIN_CODE = Property("ExecMainCode", "i")
    EXEC_MAIN_STATUS = Property("ExecMainStatus", "i")
    EXEC_MAIN_EXIT = Property("ExecMainExitTimestamp", "t")
    N_RESTARTS = Property("NRestarts", "u", since=235)
    MEMORY_CURRENT = Property("MemoryCurrent", "t")
    CPU_USAGE = Property("CPUUsageNSec", "t")
    TASKS_CURRENT = Property("TasksCurrent", "t")
    REMAIN_AFTER_EXIT = Property("RemainAfterExit", "b")

    def __init__(self, connection: Connection, path: str) -> None:
        super().__init__(connection, BUS_NAME, path)

    async def shown(self) -> ServiceShown:
        """The service's own properties."""
        rows = await self.get_all()
        return ServiceShown(
            type=_text(rows, self.TYPE, 64),
            result=_text(rows, self.RESULT, 64),
            main_pid=value(rows, self.MAIN_PID, 0),
            exec_main_code=value(rows, self.EXEC_MAIN_CODE, 0),
            exec_main_status=value(rows, self.EXEC_MAIN_STATUS, 0),
            exec_main_exit_usec=value(rows, self.EXEC_MAIN_EXIT, 0),
            restarts=value(rows, self.N_RESTARTS, 0),
            memory_bytes=_accounted(value(rows, self.MEMORY_CURRENT, NOT_ACCOUNTED)),
            cpu_nsec=_accounted(value(rows, self.CPU_USAGE, NOT_ACCOUNTED)),
            tasks=_accounted(value(rows, self.TASKS_CURRENT, NOT_ACCOUNTED)),
            remain_after_exit=value(rows, self.REMAIN_AFTER_EXIT, False),
        )


def _text(rows: dict[str, Variant], prop: Property, limit: int = 4096) -> str:
    return printable(value(rows, prop, ""), limit=limit)


def _accounted(number: int) -> int | None:
    return None if number == NOT_ACCOUNTED else number


def _conditions(rows: list[tuple[str, bool, bool, str, int]]) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            name=printable(name, limit=64), trigger=trigger, negate=negate, parameter=printable(parameter), state=state
        )
        for name, trigger, negate, parameter, state in rows
    )
