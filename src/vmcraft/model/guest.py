"""What is known about a root before it boots, and about the guest afterwards."""

from dataclasses import dataclass

from vmcraft.model.changes import Recovered
from vmcraft.model.open_enum import OpenStrEnum


class SystemState(OpenStrEnum):
    """Manager.SystemState; source: systemctl(1), is-system-running."""

    INITIALIZING = "initializing"
    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    MAINTENANCE = "maintenance"
    STOPPING = "stopping"
    OFFLINE = "offline"

    @property
    def booting(self) -> bool:
        """Whether the start-up is not over yet."""
        return self in (SystemState.INITIALIZING, SystemState.STARTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFacts:
    """What a root directory says of itself, read without running anything of it.

    Attributes:
        init: Guest path of the systemd that would be booted.
        machine: Processor of that program, as uname(1) names it.
        systemd_version: From the name of its shared library, or its own text; None when neither says.
        pretty_name: os-release's PRETTY_NAME; None when there is no os-release.
        first_boot: Whether its next boot is a first boot, which applies presets; machine-id(5), "First Boot Semantics".
        has_bus: Whether the root has a D-Bus daemon's socket unit.
    """

    init: str
    machine: str
    systemd_version: int | None
    pretty_name: str | None
    first_boot: bool
    has_bus: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job of the guest's manager that had not ended; source: ListJobs in org.freedesktop.systemd1(5)."""

    id: int
    unit: str
    type: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """How the boot ended.

    Attributes:
        state: SystemState when launch() returned; `starting` when the limit was over first.
        ready_s: Seconds from the request to READY; None when it did not come within the limit.
        finished_s: Seconds to the end of the start-up; None likewise.
        machine: The name under which systemd-machined knows the guest.
        systemd_version: The guest's own word for its version; empty only when its manager never answered.
        failed: Units that failed (any type).
        hanging: Jobs that had not ended at the limit.
        reason: Why the state is not `running`, in a sentence; None when it is.
        recovered: Killed commits to this root that were finished or undone before the boot.
    """

    state: SystemState
    ready_s: float | None
    finished_s: float | None
    machine: str
    systemd_version: str
    failed: tuple[str, ...]
    hanging: tuple[Job, ...]
    reason: str | None
    recovered: tuple[Recovered, ...] = ()
