"""Units of any type, as the manager's own properties show them."""

from dataclasses import dataclass

from vmcraft.model.services import ActiveState, LoadState, UnitFileState


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRow:
    """One row of Manager.ListUnits, without what only object paths say."""

    name: str
    description: str
    load: LoadState
    active: ActiveState
    sub: str
    job_id: int
    job_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFileRow:
    """One row of Manager.ListUnitFiles."""

    path: str
    state: UnitFileState

    @property
    def name(self) -> str:
        """The unit's name, the last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition or assert of a unit, and how its last check went.

    Attributes:
        name: `ConditionPathExists`, `AssertPathExists`...
        negate: Whether it is written with `!`.
        state: Below 0 not met, above 0 met, 0 not checked yet.
    """

    name: str
    trigger: bool
    negate: bool
    parameter: str
    state: int

    def __str__(self) -> str:
        return f"{self.name}={'|' if self.trigger else ''}{'!' if self.negate else ''}{self.parameter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitShown:
    """What org.freedesktop.systemd1.Unit says of one unit; times in microseconds, 0 for never.

    Attributes:
        unit_file_state: Stale after an enable or disable until the manager reloads: never a read-back.
        unit_file_preset: Empty where the guest does not say.
        source_path: The file that a generated unit was made from (a SysV script); empty for others.
    """

    id: str
    names: tuple[str, ...]
    description: str
    load: LoadState
    load_error: str
    active: ActiveState
    sub: str
    unit_file_state: str
    unit_file_preset: str
    fragment_path: str
    source_path: str
    drop_ins: tuple[str, ...]
    triggered_by: tuple[str, ...]
    requires: tuple[str, ...]
    need_daemon_reload: bool
    transient: bool
    active_enter_usec: int
    inactive_exit_usec: int
    condition_result: bool
    condition_usec: int
    assert_result: bool
    assert_usec: int
    conditions: tuple[Condition, ...]
    asserts: tuple[Condition, ...]

    @property
    def exists(self) -> bool:
        """Whether there is such a unit: a masked one exists, and so does one that is wrongly written."""
        return self.load is not LoadState.NOT_FOUND


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceShown:
    """What org.freedesktop.systemd1.Service says of one service; None where the guest does not account it."""

    type: str
    result: str
    main_pid: int
    exec_main_code: int
    exec_main_status: int
    exec_main_exit_usec: int
    restarts: int
    memory_bytes: int | None
    cpu_nsec: int | None
    tasks: int | None
    remain_after_exit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLinks:
    """The dependency lists of one unit, each as the manager gave it; `upholds` is empty below systemd 249."""

    requires: tuple[str, ...]
    requisite: tuple[str, ...]
    wants: tuple[str, ...]
    binds_to: tuple[str, ...]
    part_of: tuple[str, ...]
    upholds: tuple[str, ...]
    conflicts: tuple[str, ...]
    after: tuple[str, ...]
    before: tuple[str, ...]
    required_by: tuple[str, ...]
    wanted_by: tuple[str, ...]
    bound_by: tuple[str, ...]
    triggers: tuple[str, ...]
    triggered_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies(UnitLinks):
    """A unit's dependencies as the live manager has them, names sorted.

    Attributes:
        missing: Those named in any of the lists that do not exist in the guest.
    """

    missing: tuple[str, ...]
