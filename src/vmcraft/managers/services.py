"""SystemdManager: the 15 service calls, typed. Each tells its story: check, ask, read back, declare.

A call returns only when its effect was read back from the live manager; everything else is raised.
"""

import dataclasses
from collections.abc import Sequence

from vmcraft.changes.change_set import ChangeSet
from vmcraft.codec import unit_name
from vmcraft.errors import (
    ConditionNotMet,
    InvalidValue,
    JobFailed,
    NoSuchUnit,
    NotEnableable,
)
from vmcraft.guest.guest import Guest
from vmcraft.guest.quarantine import is_held_back, is_ours
from vmcraft.managers import bulk, enablement, start_verdict, sysv
from vmcraft.managers.dependencies import dependencies
from vmcraft.managers.jobs import Ran, log_of, run_job, with_log
from vmcraft.managers.links import DeclaredLinks
from vmcraft.managers.live_units import LiveUnits
from vmcraft.managers.service_rows import STATE_WORDS, file_row, loaded_row, moment, not_run
from vmcraft.model.expect import expect
from vmcraft.model.services import (
    ActiveState,
    BulkOutcome,
    Enablement,
    LoadState,
    ManagerReloaded,
    PresetApplied,
    ServiceRow,
    ServiceRun,
    ServiceStatus,
    UnitFileChange,
    UnitFileState,
)
from vmcraft.model.units import Dependencies
from vmcraft.model.warnings import CallWarning

BROKEN = frozenset({LoadState.NOT_FOUND, LoadState.BAD_SETTING, LoadState.ERROR})


class SystemdManager:
    """Services of a booted guest, through its live systemd.

    A service is named as `sshd` or `sshd.service`; an alias stands for the unit that it names; a unit of another type
    is named with its suffix. Names that no unit can have raise InvalidName, others that the guest does not know
    NoSuchUnit, and a guest that ended while it was asked GuestGone.
    """

    def __init__(self, guest: Guest, live: LiveUnits, changes: ChangeSet) -> None:
        self._guest = guest
        self._live = live
        self._links = DeclaredLinks(guest, live, changes)

    # --- control: nothing of it is left to commit

    async def service_start(self, service: str) -> ServiceRun:
        """Start a unit and wait until it runs, or has run.

        Returns:
            How the unit is after the settle time.

        Raises:
            ConditionNotMet: One of its conditions is false, or VMCraft holds it back while the guest is booted.
            UnitMasked, BadSetting, DependencyFailed, JobFailed: It did not come to run; `result` has the log lines.
            JobTimedOut: The job still ran at the limit.

        Source: StartUnit, JobRemoved in org.freedesktop.systemd1(5).
        """
        ran = await self._run(service, "start")
        return await self._judged(ran, start_verdict.judge_start(ran.run, ran.shown, ran.service))

    async def service_stop(self, service: str) -> ServiceRun:
        """Stop a unit and wait until nothing of it runs; one that had to be killed has `result` timeout.

        Raises:
            JobFailed: It still runs.
            JobTimedOut: The job still ran at the limit.

        Source: StopUnit, JobRemoved in org.freedesktop.systemd1(5).
        """
        ran = await self._run(service, "stop")
        return await self._judged(ran, start_verdict.judge_stop(ran.run))

    async def service_restart(self, service: str) -> ServiceRun:
        """Stop a unit if it runs, and start it; raises as service_start does.

        Source: RestartUnit, JobRemoved in org.freedesktop.systemd1(5).
        """
        ran = await self._run(service, "restart")
        return await self._judged(ran, start_verdict.judge_start(ran.run, ran.shown, ran.service))

    async def _run(self, service: str, verb: str) -> Ran:
        shown = await self._live.shown(unit_name.concrete(service))
        unit = shown.id
        if verb == "stop":
            return await run_job(self._guest, self._live, unit, self._guest.manager.stop_unit)
        start_verdict.refuse_unstartable(shown)
        if is_held_back(unit):
            raise ConditionNotMet(
                f"{unit} is held back while the guest is booted: it would hang or fail in a container",
                remedy="its enablement on the real machine is as it is",
                result=not_run(shown),
            )
        ask = self._guest.manager.start_unit if verb == "start" else self._guest.manager.restart_unit
        return await run_job(self._guest, self._live, unit, ask)

    async def _judged(self, ran: Ran, failure: JobFailed | None) -> ServiceRun:
        if failure is None:
            return ran.run
        failure.result = await with_log(self._guest, ran.run)
        raise failure

    # --- enablement: the symlinks are declared

    async def service_enable(self, service: str) -> Enablement:
        """Enable a unit as its [Install] section says, and read the state back.

        Returns:
            The symlinks that the manager made; none when it was enabled already.

        Raises:
            NotEnableable: It is static, generated, transient, masked or unreadable.
            ReadBackDiffers: The manager agreed, but the state is another.

        Source: EnableUnitFiles, GetUnitFileState in org.freedesktop.systemd1(5).
        """
        unit, state = await self._file(service)
        if state is UnitFileState.GENERATED and (script := await self._script(unit)):
            return await self._links.sysv(unit, script, "enable")
        enablement.refuse(unit, state, "enable", pulled_in_by=await self._pulled_in_by(unit, state))

        async def ask() -> tuple[UnitFileChange, ...]:
            return (await self._guest.manager.enable_unit_files([unit]))[1]

        return await self._links.change(unit, "service_enable", ask, lambda after: enablement.not_enabled(unit, after))

    async def service_disable(self, service: str) -> Enablement:
        """Remove the symlinks that enable a unit, and read the state back.

        A unit that does not exist is refused, unless dangling symlinks to it are left: those are removed.

        Returns:
            The symlinks that were removed; none when it was not enabled.

        Raises:
            NotEnableable: It is static, generated, transient, masked or unreadable.
            ReadBackDiffers: The manager agreed, but the unit is still enabled.

        Source: DisableUnitFiles, GetUnitFileState in org.freedesktop.systemd1(5).
        """
        try:
            unit, state = await self._file(service)
        except NoSuchUnit as missing:
            return await self._links.disable_dangling(missing)
        if state is UnitFileState.GENERATED and (script := await self._script(unit)):
            return await self._links.sysv(unit, script, "disable")
        enablement.refuse(unit, state, "disable", pulled_in_by=await self._pulled_in_by(unit, state))

        async def ask() -> tuple[UnitFileChange, ...]:
            links = await self._guest.manager.disable_unit_files([unit])
            if await self._live.file_state(unit) is UnitFileState.ENABLED_RUNTIME:
                # Enabled in /run as well, for this boot alone; nothing of it is committed.
                links += await self._guest.manager.disable_unit_files([unit], runtime=True)
            return links

        done = await self._links.change(
            unit, "service_disable", ask, lambda after: enablement.still_enabled(unit, after)
        )
        if (failure := await self._links.still_pulled_in(unit)) is not None:
            raise failure
        return dataclasses.replace(done, warnings=await self._first_boot_warnings(unit))

    async def services_enable_multiple(self, services: Sequence[str]) -> BulkOutcome:
        """Enable each; one that fails does not keep the others from being enabled."""
        return await bulk.each(services, self.service_enable)

    async def services_disable_multiple(self, services: Sequence[str]) -> BulkOutcome:
        """Disable each; one that fails does not keep the others from being disabled."""
        return await bulk.each(services, self.service_disable)

    async def services_mask(self, services: Sequence[str]) -> BulkOutcome:
        """Mask each; a name that does not exist is refused, and so is a unit whose own file is in /etc.

        Source: MaskUnitFiles, GetUnitFileState in org.freedesktop.systemd1(5).
        """
        return await bulk.each(services, self._mask)

    async def _mask(self, service: str) -> Enablement:
        unit, _state = await self._file(service)

        async def ask() -> tuple[UnitFileChange, ...]:
            return await self._guest.manager.mask_unit_files([unit])

        return await self._links.change(unit, "services_mask", ask, lambda after: enablement.not_masked(unit, after))

    async def systemctl_preset(self, service: str) -> PresetApplied:
        """Enable or disable a unit as the distribution's preset files say.

        Raises:
            NotEnableable: It is static, generated, transient, masked or unreadable.
            ReadBackDiffers: The state afterwards is not what the preset says.

        Source: PresetUnitFiles, Unit.UnitFilePreset in org.freedesktop.systemd1(5); systemd.preset(5).
        """
        unit, before = await self._file(service)
        if before is None:
            raise NotEnableable(f"{unit} has no unit file")
        enablement.refuse(unit, before, "preset", pulled_in_by=await self._pulled_in_by(unit, before))
        if unit_name.is_template(unit):
            raise enablement.needs_instance(unit)
        preset = (await self._live.shown(unit)).unit_file_preset or None

        async def ask() -> tuple[UnitFileChange, ...]:
            return (await self._guest.manager.preset_unit_files([unit]))[1]

        done = await self._links.change(
            unit, "systemctl_preset", ask, lambda after: enablement.not_preset(unit, after, preset)
        )
        return PresetApplied(
            unit=unit,
            preset=preset,
            before=before,
            unit_file_state=done.unit_file_state,
            changes=done.changes,
            held_back=done.held_back,
        )

    async def _first_boot_warnings(self, unit: str) -> tuple[CallWarning, ...]:
        """What a first boot of the real machine would undo: it enables what the presets name."""
        if not self._guest.first_boot or unit_name.is_template(unit):
            return ()
        try:
            preset = (await self._live.shown(unit)).unit_file_preset
        except NoSuchUnit:
            return ()
        if preset != "enabled":
            return ()
        text = f"{unit} will be enabled again: the root has no machine-id, so its next boot applies presets"
        remedy = f"mask it, or give the root an /etc/machine-id, or a preset file with: disable {unit}"
        return (CallWarning(key="first-boot", message=f"{text}; {remedy}"),)

    async def _file(self, service: str) -> tuple[str, UnitFileState | None]:
        """The unit's own name and the state of its file; None for a unit without one, such as a transient unit."""
        unit = unit_name.complete(service, ".service")
        state = await self._live.file_state(unit)
        if state is UnitFileState.ALIAS or (state is None and not unit_name.is_template(unit)):
            unit = await self._live.real_name(unit)
            state = await self._live.file_state(unit)
            if state is None and (await self._live.shown(unit)).transient:
                state = UnitFileState.TRANSIENT
        elif state is None:
            raise NoSuchUnit(unit)
        return unit, state

    async def _script(self, unit: str) -> str | None:
        return sysv.script_of((await self._live.shown(unit)).source_path)

    async def _pulled_in_by(self, unit: str, state: UnitFileState | None) -> tuple[str, ...]:
        if state is not UnitFileState.STATIC or unit_name.is_template(unit):
            return ()
        links = await self._guest.unit(unit).links()
        return tuple(sorted({*links.required_by, *links.wanted_by, *links.bound_by, *links.triggered_by}))

    # --- questions

    async def service_status(self, service: str) -> ServiceStatus:
        """Everything that one looks at first about a service, with the last ten lines of its log.

        Source: the properties of Unit and Service in org.freedesktop.systemd1(5); journalctl(1).
        """
        shown = await self._live.shown_alone(unit_name.concrete(service))
        unit = shown.id
        own = await self._live.service(unit)
        held = is_held_back(unit)
        log, log_error = await log_of(self._guest, unit)
        return ServiceStatus(
            name=unit,
            description=shown.description,
            load=shown.load,
            load_error=shown.load_error or None,
            active=shown.active,
            sub=shown.sub,
            unit_file_state=await self._live.file_state(unit),
            preset=shown.unit_file_preset or None,
            main_pid=(own.main_pid or None) if own else None,
            exec_main_code=own.exec_main_code if own else None,
            exec_main_status=own.exec_main_status if own else None,
            result=own.result if own else None,
            restarts=own.restarts if own else None,
            active_since=moment(shown.active_enter_usec) if shown.active is ActiveState.ACTIVE else None,
            memory_bytes=own.memory_bytes if own else None,
            cpu_seconds=own.cpu_nsec / 1e9 if own and own.cpu_nsec is not None else None,
            tasks=own.tasks if own else None,
            fragment_path=shown.fragment_path or None,
            drop_ins=tuple(path for path in shown.drop_ins if not is_ours(path)),
            triggered_by=shown.triggered_by,
            condition_result=shown.condition_result if shown.condition_usec and not held else None,
            held_back=held,
            need_daemon_reload=shown.need_daemon_reload,
            log=log,
            log_error=log_error,
        )

    async def list_services(self, state: str | None = None) -> tuple[ServiceRow, ...]:
        """All services, loaded ones and unit files alike, sorted by name.

        Args:
            state: Only those in this load, active, sub or unit-file state.

        Raises:
            InvalidValue: There is no such state.

        Source: ListUnitsByPatterns, ListUnitFilesByPatterns in org.freedesktop.systemd1(5).
        """
        expect(state, (str, type(None)), "a state")
        await self._live.fresh()
        files, aliases = await self._live.table(), self._live.alias_targets()
        loaded = {row.name: row for row in await self._guest.manager.list_units_by_patterns([], ["*.service"])}
        await self._live.learn_instances(loaded)
        rows = [
            loaded_row(row, self._live.listed_state(row.name, files))
            for row in loaded.values()
            if unit_name.is_valid(row.name)
        ]
        rows += [
            file_row(name, of, loaded.get(aliases.get(name, ""))) for name, of in files.items() if name not in loaded
        ]
        rows.sort(key=lambda row: row.name)
        if state is None:
            return tuple(rows)
        chosen = tuple(row for row in rows if state in (row.load, row.active, row.sub, row.unit_file_state))
        if not chosen and state not in STATE_WORDS:
            raise InvalidValue(
                f"{state!r} is no state of a service", remedy="for instance failed, running, enabled, masked, not-found"
            )
        return chosen

    async def list_failed_services(self) -> tuple[str, ...]:
        """The names of the services that failed, sorted.

        Source: ListUnitsByPatterns in org.freedesktop.systemd1(5).
        """
        rows = await self._guest.manager.list_units_by_patterns(["failed"], ["*.service"])
        return tuple(sorted(row.name for row in rows))

    async def get_service_dependencies(self, service: str) -> Dependencies:
        """What a unit needs and who needs it, as the live manager has it; and what of that does not exist.

        Source: the properties of Unit in org.freedesktop.systemd1(5).
        """
        shown = await self._live.shown(unit_name.concrete(service))
        return await dependencies(self._guest, shown.id)

    async def daemon_reload(self) -> ManagerReloaded:
        """Let the manager run its generators and read all units again; names those that load worse than before.

        Source: Reload, ListUnits in org.freedesktop.systemd1(5).
        """
        before = {row.name: row.load for row in await self._guest.manager.list_units()}
        duration = await self._live.reload()
        after = await self._guest.manager.list_units()
        worse = sorted(row.name for row in after if row.load in BROKEN and before.get(row.name) not in BROKEN)
        return ManagerReloaded(duration=duration, newly_failing=tuple(worse))

    async def is_systemd_available(self) -> bool:
        """Whether the guest's manager answers; raises when the guest is gone or does not answer.

        Source: Manager.SystemState in org.freedesktop.systemd1(5).
        """
        return bool(await self._guest.manager.system_state())
