"""AsyncVMCraft: every plain call, written out; the table of contents of the package.

One statement each: a typed call of a manager, and the conversion of what it answers.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from vmcraft.facade.answers import Answers
from vmcraft.guest.boot import BOOT_LIMIT_S
from vmcraft.managers.services import SystemdManager
from vmcraft.model.drive import Drive
from vmcraft.model.services import Enablement, ManagerReloaded, PresetApplied, ServiceRun
from vmcraft.transaction import Transaction


class AsyncVMCraft:
    """A guest, opened for as long as an `async with` block lasts.

    The source is opened read-only, and the guest runs on an overlay. What the calls change is committed to the source
    (or to `output`) when the block ends normally; nothing is written when an error leaves it, or with `readonly`.

    Change calls answer a dict with `attempted`, `ok`, `error` (a stable key, a colon and a sentence; None when ok),
    `outcome` (done, refused, unknown) and `remedy`; `ok` is true only when the effect was read back. Questions raise a
    `VMCraftError` when they fail or ask about what does not exist.
    """

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._answers = Answers()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transaction.close(commit=kind is None)

    # --- the guest

    async def add_drive_opts(
        self,
        path: str,
        format: str | None = None,  # noqa: A002 - the API's own name
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
        self._transaction.add_drive(
            Drive(
                path=path,
                format=format,
                readonly=readonly,
                output=output,
                output_format=output_format,
                key_file=key_file,
            )
        )

    async def launch(self, boot_limit: float = BOOT_LIMIT_S, root: str | None = None) -> dict[str, Any]:
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
        return await self._answers.query(dict[str, Any], self._transaction.launch(boot_limit=boot_limit, root=root))

    async def diff(self) -> list[dict[str, Any]]:
        """The pending changes: path, change (created, modified, removed), call, args, before, after."""
        return await self._answers.query(list[dict[str, Any]], self._transaction.diff())

    async def commit(self) -> dict[str, Any]:
        """Write the pending changes, all or none; answers `changes` as diff does, and `output`."""
        return await self._answers.query(dict[str, Any], self._transaction.commit())

    async def discard(self) -> None:
        """Forget the pending changes; the guest is booted anew, as the source is."""
        await self._transaction.discard()

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """What the last call has to say beside its answer: call, key, message."""
        return self._answers.warnings

    @property
    def services(self) -> SystemdManager:
        """The typed calls behind `systemd_*` of services; raises NotLaunched before `launch`."""
        return self._transaction.services

    # --- SystemdManager

    async def systemd_service_start(self, service: str) -> dict[str, Any]:
        """Start a unit.

        Answers beside the outcome: job_result, active, sub, result, exec_main_code, exec_main_status, log (when it
        failed), dependency (the unit that failed first), held_back.
        """
        return await self._answers.change("service_start", ServiceRun, self.services.service_start(service))

    async def systemd_service_stop(self, service: str) -> dict[str, Any]:
        """Stop a unit: the same keys."""
        return await self._answers.change("service_stop", ServiceRun, self.services.service_stop(service))

    async def systemd_service_restart(self, service: str) -> dict[str, Any]:
        """Restart a unit: the same keys."""
        return await self._answers.change("service_restart", ServiceRun, self.services.service_restart(service))

    async def systemd_service_enable(self, service: str) -> dict[str, Any]:
        """Enable a unit: unit, changes ({type, path, source}), unit_file_state read back, held_back."""
        return await self._answers.change("service_enable", Enablement, self.services.service_enable(service))

    async def systemd_service_disable(self, service: str) -> dict[str, Any]:
        """Disable a unit: the same keys."""
        return await self._answers.change("service_disable", Enablement, self.services.service_disable(service))

    async def systemd_service_status(self, service: str) -> dict[str, Any]:
        """A unit's state and its last log lines: the fields of `ServiceStatus`."""
        return await self._answers.query(dict[str, Any], self.services.service_status(service))

    async def systemd_services_enable_multiple(self, services: Sequence[str]) -> dict[str, bool]:
        """Enable each: name as given to whether it is enabled."""
        return await self._answers.each("services_enable_multiple", self.services.services_enable_multiple(services))

    async def systemd_services_disable_multiple(self, services: Sequence[str]) -> dict[str, bool]:
        """Disable each: name as given to whether it is disabled."""
        return await self._answers.each("services_disable_multiple", self.services.services_disable_multiple(services))

    async def systemd_services_mask(self, services: Sequence[str]) -> dict[str, bool]:
        """Mask each: name as given to whether it is masked."""
        return await self._answers.each("services_mask", self.services.services_mask(services))

    async def systemd_list_services(self, state: str | None = None) -> list[dict[str, Any]]:
        """Services, loaded or not: name, load, active, sub, description, unit_file_state, held_back."""
        return await self._answers.query(list[dict[str, Any]], self.services.list_services(state))

    async def systemd_list_failed_services(self) -> list[str]:
        """The names of the services that failed."""
        return await self._answers.query(list[str], self.services.list_failed_services())

    async def systemd_get_service_dependencies(self, service: str) -> dict[str, list[str]]:
        """A unit's dependencies by kind, and `missing`: the fields of `Dependencies`."""
        return await self._answers.query(dict[str, list[str]], self.services.get_service_dependencies(service))

    async def systemd_daemon_reload(self) -> dict[str, Any]:
        """Reload the manager: duration, newly_failing."""
        return await self._answers.change("daemon_reload", ManagerReloaded, self.services.daemon_reload())

    async def systemd_systemctl_preset(self, service: str) -> dict[str, Any]:
        """Apply the distribution's preset: unit, preset, before, unit_file_state, changes, held_back."""
        return await self._answers.change("systemctl_preset", PresetApplied, self.services.systemctl_preset(service))

    async def systemd_is_systemd_available(self) -> bool:
        """Before `launch`, whether a systemd that can be booted is in the root; then, whether its manager answers."""
        return await self._answers.query(bool, self._transaction.is_systemd_available())
