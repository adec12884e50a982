"""Units and services as the guest's manager shows them, and what the 15 service calls answer."""

from dataclasses import dataclass, field
from datetime import datetime

from vmcraft.model.open_enum import OpenStrEnum
from vmcraft.model.outcome import Outcome
from vmcraft.model.warnings import CallWarning


class LoadState(OpenStrEnum):
    """Unit.LoadState; `not-loaded` is ours, for a unit file that the manager has not loaded."""

    STUB = "stub"
    LOADED = "loaded"
    NOT_FOUND = "not-found"
    BAD_SETTING = "bad-setting"
    ERROR = "error"
    MERGED = "merged"
    MASKED = "masked"
    NOT_LOADED = "not-loaded"


class ActiveState(OpenStrEnum):
    """Unit.ActiveState."""

    ACTIVE = "active"
    RELOADING = "reloading"
    INACTIVE = "inactive"
    FAILED = "failed"
    ACTIVATING = "activating"
    DEACTIVATING = "deactivating"
    MAINTENANCE = "maintenance"
    REFRESHING = "refreshing"


class UnitFileState(OpenStrEnum):
    """The state of a unit file; source: systemctl(1), is-enabled."""

    ENABLED = "enabled"
    ENABLED_RUNTIME = "enabled-runtime"
    LINKED = "linked"
    LINKED_RUNTIME = "linked-runtime"
    ALIAS = "alias"
    MASKED = "masked"
    MASKED_RUNTIME = "masked-runtime"
    STATIC = "static"
    DISABLED = "disabled"
    INDIRECT = "indirect"
    GENERATED = "generated"
    TRANSIENT = "transient"
    BAD = "bad"

    @property
    def masked(self) -> bool:
        """Whether the unit cannot be started because it is linked to /dev/null."""
        return self in (UnitFileState.MASKED, UnitFileState.MASKED_RUNTIME)


class JobResult(OpenStrEnum):
    """JobRemoved's last word; source: org.freedesktop.systemd1(5)."""

    DONE = "done"
    CANCELED = "canceled"
    TIMEOUT = "timeout"
    FAILED = "failed"
    DEPENDENCY = "dependency"
    SKIPPED = "skipped"
    INVALID = "invalid"
    ASSERT = "assert"
    UNSUPPORTED = "unsupported"
    COLLECTED = "collected"
    ONCE = "once"
    FROZEN = "frozen"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of the guest's journal; priority as in syslog(3), None where the entry has none."""

    timestamp: datetime
    priority: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFileChange:
    """One symlink that the manager made or removed, in its own words.

    Attributes:
        type: `symlink` or `unlink`; other words mean that nothing was done.
        path: The symlink.
        source: What it points to; empty for `unlink`.
    """

    type: str
    path: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Enablement:
    """A unit's enablement as it was read back."""

    unit: str
    changes: tuple[UnitFileChange, ...]
    unit_file_state: UnitFileState | None
    held_back: bool
    warnings: tuple[CallWarning, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetApplied:
    """What applying the distribution's preset did.

    Attributes:
        preset: What the distribution wants: `enabled`, `disabled` or `ignore`; None when the guest does not say.
        before: Unit-file state before.
    """

    unit: str
    preset: str | None
    before: UnitFileState
    unit_file_state: UnitFileState | None
    changes: tuple[UnitFileChange, ...]
    held_back: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRun:
    """What a start, stop or restart came to.

    Attributes:
        job_result: None when the job had not ended or was never made.
        exec_main_code: How the main process ended: 1 exited, 2 killed, 3 dumped (CLD_* of waitid(2)); 0 not ended.
        exec_main_status: Its exit status or signal.
        log: The last lines, when it failed.
        dependency: The unit that failed first, when it was another one; else None.
    """

    unit: str
    job_result: JobResult | None
    active: ActiveState
    sub: str
    result: str | None
    exec_main_code: int | None
    exec_main_status: int | None
    log: tuple[LogLine, ...] = ()
    dependency: str | None = None
    held_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """Everything that one looks at first about a service.

    Attributes:
        name: The unit's own name, also when it was asked for by an alias.
        preset: `enabled`, `disabled` or `ignore`; None when the guest does not say.
        main_pid: In the guest; None when nothing runs.
        result: Service.Result; None for a unit that is no service.
        active_since: None unless the unit is active.
        memory_bytes: None where the guest does not account it, likewise cpu_seconds and tasks.
        condition_result: Whether its conditions held at the last start; None before a first one and when held back.
        held_back: VMCraft keeps the unit from running while the guest is booted.
        log: The last ten lines of this boot.
        log_error: Why the log could not be read; None when it could.
        need_daemon_reload: A file of the unit changed since it was loaded.
    """

    name: str
    description: str
    load: LoadState
    load_error: str | None
    active: ActiveState
    sub: str
    unit_file_state: UnitFileState | None
    preset: str | None
    main_pid: int | None
    exec_main_code: int | None
    exec_main_status: int | None
    result: str | None
    restarts: int | None
    active_since: datetime | None
    memory_bytes: int | None
    cpu_seconds: float | None
    tasks: int | None
    fragment_path: str | None
    drop_ins: tuple[str, ...]
    triggered_by: tuple[str, ...]
    condition_result: bool | None
    held_back: bool
    need_daemon_reload: bool
    log: tuple[LogLine, ...]
    log_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRow:
    """One row of list_services; unit_file_state is None for a unit without a file."""

    name: str
    load: LoadState
    active: ActiveState
    sub: str
    description: str
    unit_file_state: UnitFileState | None
    held_back: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerReloaded:
    """What a reload of the manager changed for the worse.

    Attributes:
        duration: Seconds.
        newly_failing: Units that load worse than before.
    """

    duration: float
    newly_failing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedOutcome:
    """One name of a bulk call.

    Attributes:
        name: As the caller gave it.
        error: Key and sentence; None when it is done.
        remedy: What to do about the error.
        changes: The symlinks; empty when nothing had to be done.
    """

    name: str
    outcome: Outcome
    error: str | None = None
    remedy: str | None = None
    unit_file_state: UnitFileState | None = None
    changes: tuple[UnitFileChange, ...] = ()
    warnings: tuple[CallWarning, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it is done, as read back."""
        return self.outcome is Outcome.DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOutcome:
    """Each name's own outcome, in the order given."""

    items: tuple[NamedOutcome, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every name is done."""
        return all(item.ok for item in self.items)
