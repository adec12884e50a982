"""The blocking twin of the facade and of the typed managers.

Written by scripts/gen-blocking from calls.py and the managers; CI checks that it is current. Do not edit.
"""

from collections.abc import Sequence
from typing import Any

from vmcraft.facade.calls import AsyncVMCraft
from vmcraft.facade.portal import Portal
from vmcraft.guest.boot import BOOT_LIMIT_S
from vmcraft.managers.services import SystemdManager
from vmcraft.model.services import (
    BulkOutcome,
    Enablement,
    ManagerReloaded,
    PresetApplied,
    ServiceRow,
    ServiceRun,
    ServiceStatus,
)
from vmcraft.model.units import Dependencies


class BlockingSystemdManager:
    """Services of a booted guest, through its live systemd.

    A service is named as `sshd` or `sshd.service`; an alias stands for the unit that it names; a unit of another type
    is named with its suffix. Names that no unit can have raise InvalidName, others that the guest does not know
    NoSuchUnit, and a guest that ended while it was asked GuestGone.
    """

    def __init__(self, inner: SystemdManager, portal: Portal) -> None:
        self._inner = inner
        self._portal = portal

    def service_start(self, service: str) -> ServiceRun:
        """Start a unit and wait until it runs, or has run.

        Returns:
            How the unit is after the settle time.

        Raises:
            ConditionNotMet: One of its conditions is false, or VMCraft holds it back while the guest is booted.
            UnitMasked, BadSetting, DependencyFailed, JobFailed: It did not come to run; `result` has the log lines.
            JobTimedOut: The job still ran at the limit.

        Source: StartUnit, JobRemoved in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.service_start, service)

    def service_stop(self, service: str) -> ServiceRun:
        """Stop a unit and wait until nothing of it runs; one that had to be killed has `result` timeout.

        Raises:
            JobFailed: It still runs.
            JobTimedOut: The job still ran at the limit.

        Source: StopUnit, JobRemoved in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.service_stop, service)

    def service_restart(self, service: str) -> ServiceRun:
        """Stop a unit if it runs, and start it; raises as service_start does.

        Source: RestartUnit, JobRemoved in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.service_restart, service)

    def service_enable(self, service: str) -> Enablement:
        """Enable a unit as its [Install] section says, and read the state back.

        Returns:
            The symlinks that the manager made; none when it was enabled already.

        Raises:
            NotEnableable: It is static, generated, transient, masked or unreadable.
            ReadBackDiffers: The manager agreed, but the state is another.

        Source: EnableUnitFiles, GetUnitFileState in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.service_enable, service)

    def service_disable(self, service: str) -> Enablement:
        """Remove the symlinks that enable a unit, and read the state back.

        A unit that does not exist is refused, unless dangling symlinks to it are left: those are removed.

        Returns:
            The symlinks that were removed; none when it was not enabled.

        Raises:
            NotEnableable: It is static, generated, transient, masked or unreadable.
            ReadBackDiffers: The manager agreed, but the unit is still enabled.

        Source: DisableUnitFiles, GetUnitFileState in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.service_disable, service)

    def services_enable_multiple(self, services: Sequence[str]) -> BulkOutcome:
        """Enable each; one that fails does not keep the others from being enabled."""
        return self._portal.call(self._inner.services_enable_multiple, services)

    def services_disable_multiple(self, services: Sequence[str]) -> BulkOutcome:
        """Disable each; one that fails does not keep the others from being disabled."""
        return self._portal.call(self._inner.services_disable_multiple, services)

    def services_mask(self, services: Sequence[str]) -> BulkOutcome:
        """Mask each; a name that does not exist is refused, and so is a unit whose own file is in /etc.

        Source: MaskUnitFiles, GetUnitFileState in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.services_mask, services)

    def systemctl_preset(self, service: str) -> PresetApplied:
        """Enable or disable a unit as the distribution's preset files say.

        Raises:
            NotEnableable: It is static, generated, transient, masked or unreadable.
            ReadBackDiffers: The state afterwards is not what the preset says.

        Source: PresetUnitFiles, Unit.UnitFilePreset in org.freedesktop.systemd1(5); systemd.preset(5).
        """
        return self._portal.call(self._inner.systemctl_preset, service)

    def service_status(self, service: str) -> ServiceStatus:
        """Everything that one looks at first about a service, with the last ten lines of its log.

        Source: the properties of Unit and Service in org.freedesktop.systemd1(5); journalctl(1).
        """
        return self._portal.call(self._inner.service_status, service)

    def list_services(self, state: str | None = None) -> tuple[ServiceRow, ...]:
        """All services, loaded ones and unit files alike, sorted by name.

        Args:
            state: Only those in this load, active, sub or unit-file state.

        Raises:
            InvalidValue: There is no such state.

        Source: ListUnitsByPatterns, ListUnitFilesByPatterns in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.list_services, state)

    def list_failed_services(self) -> tuple[str, ...]:
        """The names of the services that failed, sorted.

        Source: ListUnitsByPatterns in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.list_failed_services)

    def get_service_dependencies(self, service: str) -> Dependencies:
        """What a unit needs and who needs it, as the live manager has it; and what of that does not exist.

        Source: the properties of Unit in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.get_service_dependencies, service)

    def daemon_reload(self) -> ManagerReloaded:
        """Let the manager run its generators and read all units again; names those that load worse than before.

        Source: Reload, ListUnits in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.daemon_reload)

    def is_systemd_available(self) -> bool:
        """Whether the guest's manager answers; raises when the guest is gone or does not answer.

        Source: Manager.SystemState in org.freedesktop.systemd1(5).
        """
        return self._portal.call(self._inner.is_systemd_available)


class BlockingVMCraft:
    """A guest, opened for as long as a `with` block lasts.

    The source is opened read-only, and the guest runs on an overlay. What the calls change is committed to the source
    (or to `output`) when the block ends normally; nothing is written when an error leaves it, or with `readonly`.

    Change calls answer a dict with `attempted`, `ok`, `error` (a stable key, a colon and a sentence; None when ok),
    `outcome` (done, refused, unknown) and `remedy`; `ok` is true only when the effect was read back. Questions raise a
    `VMCraftError` when they fail or ask about what does not exist.
    """

    def __init__(self, inner: AsyncVMCraft, portal: Portal) -> None:
        self._inner = inner
        self._portal = portal

    def add_drive_opts(
        self,
        path: str,
        format: str | None = None,  # noqa: A002
        readonly: bool = False,
        output: str | None = None,
        output_format: str | None = None,
        key_file: str | None = None,
    ) -> None:
        """Name what the guest is booted from.

        Args:
            path: A root directory.
            format: Of a disk image; None for a directory.
            readonly: Nothing is ever written back.
            output: Commit to a new root at this path instead of to the source.
            output_format: Of a new disk image; None for a directory.
            key_file: Holds the pass phrase of an encrypted image.

        Raises:
            NoSuchFile: There is nothing at `path`.
            UnknownFormat: It is nothing that can be opened.
            Exists: There is something at `output`.
        """
        self._portal.call(self._inner.add_drive_opts, path, format, readonly, output, output_format, key_file)

    def launch(self, boot_limit: float = BOOT_LIMIT_S, root: str | None = None) -> dict[str, Any]:
        """Boot the guest and wait until its start-up is over, or the limit; does nothing when it runs already.

        Args:
            boot_limit: Seconds; the guest stays usable when they are over.
            root: Which root of several to boot.

        Returns:
            state, ready_s, finished_s (seconds or None), machine, systemd_version, failed (units), hanging (jobs that
            still run: id, unit, type, state), reason (why the state is not `running`), recovered (killed commits).

        Raises:
            NoInit, WrongArchitecture, TooOldForHost: The root cannot be booted here.
            BootFailed, BootHung: It did not come up.
            HostError: This host lacks something.
        """
        return self._portal.call(self._inner.launch, boot_limit, root)

    def diff(self) -> list[dict[str, Any]]:
        """The pending changes: path, change (created, modified, removed), call, args, before, after."""
        return self._portal.call(self._inner.diff)

    def commit(self) -> dict[str, Any]:
        """Write the pending changes, all or none; answers `changes` as diff does, and `output`."""
        return self._portal.call(self._inner.commit)

    def discard(self) -> None:
        """Forget the pending changes; the guest is booted anew, as the source is."""
        self._portal.call(self._inner.discard)

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """What the last call has to say beside its answer: call, key, message."""
        return self._inner.warnings

    @property
    def services(self) -> BlockingSystemdManager:
        """The typed calls behind `systemd_*` of services; raises NotLaunched before `launch`."""
        return BlockingSystemdManager(self._inner.services, self._portal)

    def systemd_service_start(self, service: str) -> dict[str, Any]:
        """Start a unit.

        Answers beside the outcome: job_result, active, sub, result, exec_main_code, exec_main_status, log (when it
        failed), dependency (the unit that failed first), held_back.
        """
        return self._portal.call(self._inner.systemd_service_start, service)

    def systemd_service_stop(self, service: str) -> dict[str, Any]:
        """Stop a unit: the same keys."""
        return self._portal.call(self._inner.systemd_service_stop, service)

    def systemd_service_restart(self, service: str) -> dict[str, Any]:
        """Restart a unit: the same keys."""
        return self._portal.call(self._inner.systemd_service_restart, service)

    def systemd_service_enable(self, service: str) -> dict[str, Any]:
        """Enable a unit: unit, changes ({type, path, source}), unit_file_state read back, held_back."""
        return self._portal.call(self._inner.systemd_service_enable, service)

    def systemd_service_disable(self, service: str) -> dict[str, Any]:
        """Disable a unit: the same keys."""
        return self._portal.call(self._inner.systemd_service_disable, service)

    def systemd_service_status(self, service: str) -> dict[str, Any]:
        """A unit's state and its last log lines: the fields of `ServiceStatus`."""
        return self._portal.call(self._inner.systemd_service_status, service)

    def systemd_services_enable_multiple(self, services: Sequence[str]) -> dict[str, bool]:
        """Enable each: name as given to whether it is enabled."""
        return self._portal.call(self._inner.systemd_services_enable_multiple, services)

    def systemd_services_disable_multiple(self, services: Sequence[str]) -> dict[str, bool]:
        """Disable each: name as given to whether it is disabled."""
        return self._portal.call(self._inner.systemd_services_disable_multiple, services)

    def systemd_services_mask(self, services: Sequence[str]) -> dict[str, bool]:
        """Mask each: name as given to whether it is masked."""
        return self._portal.call(self._inner.systemd_services_mask, services)

    def systemd_list_services(self, state: str | None = None) -> list[dict[str, Any]]:
        """Services, loaded or not: name, load, active, sub, description, unit_file_state, held_back."""
        return self._portal.call(self._inner.systemd_list_services, state)

    def systemd_list_failed_services(self) -> list[str]:
        """The names of the services that failed."""
        return self._portal.call(self._inner.systemd_list_failed_services)

    def systemd_get_service_dependencies(self, service: str) -> dict[str, list[str]]:
        """A unit's dependencies by kind, and `missing`: the fields of `Dependencies`."""
        return self._portal.call(self._inner.systemd_get_service_dependencies, service)

    def systemd_daemon_reload(self) -> dict[str, Any]:
        """Reload the manager: duration, newly_failing."""
        return self._portal.call(self._inner.systemd_daemon_reload)

    def systemd_systemctl_preset(self, service: str) -> dict[str, Any]:
        """Apply the distribution's preset: unit, preset, before, unit_file_state, changes, held_back."""
        return self._portal.call(self._inner.systemd_systemctl_preset, service)

    def systemd_is_systemd_available(self) -> bool:
        """Before `launch`, whether a systemd that can be booted is in the root; then, whether its manager answers."""
        return self._portal.call(self._inner.systemd_is_systemd_available)
