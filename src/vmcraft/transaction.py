"""Transaction: a drive, its root, the booted guest, the managers; then commit what was declared, or nothing."""

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from typing import Self

import anyio

from vmcraft.changes.change_set import ChangeSet, change_set
from vmcraft.changes.commit import commit, commit_to_output
from vmcraft.changes.journal import locked
from vmcraft.changes.recover import recover
from vmcraft.errors import Exists, GuestGone, InvalidValue, NoSuchFile, NotBootable, NotLaunched, UnknownFormat
from vmcraft.guest.boot import BOOT_LIMIT_S, booted
from vmcraft.guest.guest import Guest
from vmcraft.guest.root import examine
from vmcraft.host.overlay import STATE_DIR
from vmcraft.host.privileges import require_root
from vmcraft.host.root_dir import RootDir
from vmcraft.managers.live_units import live_units
from vmcraft.managers.services import SystemdManager
from vmcraft.model.changes import Change, Committed
from vmcraft.model.drive import Drive
from vmcraft.model.expect import expect
from vmcraft.model.guest import Launched, RootFacts
from vmcraft.model.printable import quoted


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Life:
    """One booted guest with its managers; a discard ends it and begins another."""

    guest: Guest
    changes: ChangeSet
    services: SystemdManager


class Transaction:
    """One opened guest.

    Used by the facade step by step (add_drive, launch, calls, close), or whole through `Transaction.open`.
    """

    def __init__(self, *, private_users: bool = True, state_dir: str = STATE_DIR) -> None:
        self._private_users = private_users
        self._state_dir = state_dir
        self._drive: Drive | None = None
        self._boot_limit = BOOT_LIMIT_S
        self._root: RootDir | None = None
        self._facts: RootFacts | None = None
        self._launched: Launched | None = None
        self._life: _Life | None = None
        self._closed = False
        self._output_written = False
        self._launching: anyio.CancelScope | None = None
        # Opening, committing and ending wait for each other; the calls in between do not.
        self._lock = anyio.Lock()
        # The root's descriptor and lock last as long as the transaction, the guest until the next discard.
        self._whole = contextlib.ExitStack()
        self._living = contextlib.AsyncExitStack()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        path: str,
        *,
        readonly: bool = False,
        output: str | None = None,
        private_users: bool = True,
        boot_limit: float = BOOT_LIMIT_S,
        state_dir: str = STATE_DIR,
    ) -> AsyncIterator[Self]:
        """A booted guest; its pending changes are committed when the block ends normally, and forgotten otherwise."""
        transaction = cls(private_users=private_users, state_dir=state_dir)
        transaction.add_drive(Drive(path=path, readonly=readonly, output=output))
        ended = False
        try:
            await transaction.launch(boot_limit=boot_limit)
            yield transaction
            ended = True
        finally:
            await transaction.close(commit=ended)

    # --- opening

    def add_drive(self, drive: Drive) -> None:
        """Name what the guest is booted from.

        Raises:
            NoSuchFile: There is nothing at its path.
            UnknownFormat: It is not a directory: disk images are not opened yet.
            Exists: There is something at its output's path.
            InvalidValue: A drive was named already, or a word that a directory has no use for.
        """
        expect(drive.path, str, "a path")
        expect(drive.readonly, bool, "readonly")
        for word in ("format", "output", "output_format", "key_file"):
            expect(getattr(drive, word), (str, type(None)), word)
        if self._drive is not None:
            raise InvalidValue("a guest has one root directory", remedy="open another VMCraft for another guest")
        if not _is_utf8(drive.path) or not _is_utf8(drive.output or ""):
            raise InvalidValue("a path on the host is UTF-8 here, as D-Bus carries it", remedy="rename the directory")
        if "\0" in drive.path or not os.path.exists(drive.path):
            raise NoSuchFile(
                f"there is nothing at {quoted(drive.path)}", remedy="give the path of a guest's root directory"
            )
        if not os.path.isdir(drive.path):
            raise UnknownFormat(
                f"{quoted(drive.path)} is no directory, and disk images are not opened by this version",
                remedy="mount the image and give the directory of its root",
            )
        if drive.format or drive.output_format or drive.key_file:
            raise InvalidValue(
                f"{quoted(drive.path)} is a directory: format, output_format and key_file are for images"
            )
        if drive.output is not None:
            _refuse_output(drive.path, drive.output)
        self._drive = dataclasses.replace(drive, path=os.path.realpath(drive.path))

    async def launch(self, *, boot_limit: float = BOOT_LIMIT_S, root: str | None = None) -> Launched:
        """Boot the guest and wait until its start-up is over, or the limit; answers the same when it runs already.

        An earlier commit to this root that was killed half-way is finished or undone first.
        """
        async with self._lock:
            if self._launched is None or self._closed:
                with anyio.CancelScope() as self._launching:
                    self._launched = await self._first_launch(boot_limit, root)
            if self._launched is None:
                raise NotLaunched("this guest was closed while it booted", remedy="open another VMCraft")
            if not self._booted().guest.alive:
                raise GuestGone("the guest has ended since it was launched", remedy="open another VMCraft")
            return self._launched

    async def _first_launch(self, boot_limit: float, root: str | None) -> Launched:
        expect(root, (str, type(None)), "root")
        if root is not None:
            raise InvalidValue("a root directory holds one root", remedy="leave root= away")
        expect(boot_limit, (int, float), "boot_limit")
        if not 0 < boot_limit <= 86_400:
            raise InvalidValue(f"boot_limit {boot_limit:g} is not between 0 and 86400 seconds")
        drive = self._named_drive()
        require_root()
        recovered = await anyio.to_thread.run_sync(lambda: recover(self._state_dir, root=drive.path))
        opened = self._opened()
        # Others may read the root meanwhile; a commit to it waits until nobody does.
        shared = locked(opened.fd, exclusive=False, what=drive.path)
        await anyio.to_thread.run_sync(self._whole.enter_context, shared)
        self._facts = examine(opened, drive.path)
        self._boot_limit = boot_limit
        return dataclasses.replace(await self._boot(), recovered=recovered)

    async def _boot(self) -> Launched:
        drive, facts = self._named_drive(), self._facts
        async with contextlib.AsyncExitStack() as stack:
            guest = await stack.enter_async_context(
                booted(
                    drive.path,
                    has_bus=facts is None or facts.has_bus,
                    first_boot=facts is not None and facts.first_boot,
                    private_users=self._private_users,
                    boot_limit=self._boot_limit,
                    state_dir=self._state_dir,
                )
            )
            live = await stack.enter_async_context(live_units(guest))
            changes = await stack.enter_async_context(
                change_set(drive.path, guest.directory.upper, guest.directory.base)
            )
            self._life = _Life(guest=guest, changes=changes, services=SystemdManager(guest, live, changes))
            self._living = stack.pop_all()
        return guest.launched

    def _named_drive(self) -> Drive:
        if self._closed:
            raise NotLaunched("this guest was closed", remedy="open another VMCraft")
        if self._drive is None:
            raise NotLaunched("no drive was named", remedy="call add_drive_opts first")
        return self._drive

    def _opened(self) -> RootDir:
        if self._root is None:
            self._root = self._whole.enter_context(RootDir.open(self._named_drive().path))
        return self._root

    def _booted(self) -> _Life:
        if self._life is None and self._closed:
            raise NotLaunched("this guest was closed", remedy="open another VMCraft")
        if self._life is None:
            raise NotLaunched("the guest is not booted", remedy="call launch first")
        return self._life

    # --- what it is for

    @property
    def guest(self) -> Guest:
        """The booted guest; raises NotLaunched before `launch`."""
        return self._booted().guest

    @property
    def services(self) -> SystemdManager:
        """The service calls; raises NotLaunched before `launch`."""
        return self._booted().services

    async def is_systemd_available(self) -> bool:
        """Before `launch`, whether the root holds a systemd that can be booted here; after it, whether that answers."""
        if self._life is not None:
            return await self._life.services.is_systemd_available()
        try:
            examine(self._opened(), self._named_drive().path)
        except NotBootable:
            return False
        return True

    # --- ending

    async def diff(self) -> tuple[Change, ...]:
        """The pending changes, sorted by path."""
        changes = self._booted().changes
        if await changes.is_empty():
            return ()
        pending = await changes.pending()
        return await anyio.to_thread.run_sync(pending.list)

    async def commit(self) -> Committed:
        """Write the pending changes to the source, or to the output; all of them, or none.

        Raises:
            InvalidValue: The drive was named readonly.
            Conflict: The root changed meanwhile, or another guest of it runs.
            HostError: It could not be written; nothing was.
        """
        async with self._lock:
            return await self._commit()

    async def _commit(self) -> Committed:
        drive, life = self._named_drive(), self._booted()
        if drive.readonly:
            raise InvalidValue("the drive was added with readonly=True", remedy="open it without readonly to commit")
        if not life.guest.alive:
            raise GuestGone("the guest ended before the commit; nothing was written", remedy="open it again")
        if drive.output is not None and self._output_written:
            raise InvalidValue(
                f"{quoted(drive.output)} was written already", remedy="commit once, or to another output"
            )
        pending = await life.changes.pending()
        lock_fd, state_dir = self._opened().fd, self._state_dir

        def write() -> Committed:
            if drive.output is not None:
                return commit_to_output(drive.path, pending, drive.output, state_dir=state_dir, lock_fd=lock_fd)
            return commit(drive.path, pending, state_dir=state_dir, lock_fd=lock_fd)

        # A commit is not left half-way because somebody no longer waits for it; a kill is what the journal is for.
        with anyio.CancelScope(shield=True):
            committed = await anyio.to_thread.run_sync(write)
        pending.clear()
        self._output_written = drive.output is not None
        return committed

    async def discard(self) -> None:
        """Forget the pending changes; the guest is booted anew, so that it is again as the source is."""
        async with self._lock:
            self._booted()
            self._life = None
            self._launched = None
            with anyio.CancelScope(shield=True):
                await self._living.aclose()
            with anyio.CancelScope() as self._launching:
                self._launched = await self._boot()

    async def _has_something_to_write(self) -> bool:
        new_output = self._named_drive().output is not None and not self._output_written
        return new_output or not await self._booted().changes.is_empty()

    async def close(self, *, commit: bool) -> None:
        """End the guest; before it, commit what is pending if `commit` is true and the drive may be written."""
        if self._closed:
            return
        if self._launching is not None:
            self._launching.cancel()
        # Also when we are cancelled: what it waits for is bounded, and a guest must not be left behind.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._close(commit=commit)

    async def _close(self, *, commit: bool) -> None:
        try:
            life, drive = self._life, self._drive
            writes = commit and life is not None and drive is not None and not drive.readonly
            if writes and await self._has_something_to_write():
                await self._commit()
        finally:
            self._life = None
            self._closed = True
            try:
                await self._living.aclose()
            finally:
                self._whole.close()


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_output(source: str, output: str) -> None:
    """Refuse before anything is booted what the commit could not write to."""
    if os.path.lexists(output):
        raise Exists(f"there is something at {quoted(output)} already", remedy="name another output")
    parent = os.path.realpath(os.path.dirname(os.path.abspath(output)))
    if not os.path.isdir(parent):
        raise NoSuchFile(
            f"there is no directory {quoted(parent)} for the output", remedy="make it, or name another output"
        )
    root = os.path.realpath(source)
    if os.path.commonpath([root, parent]) == root:
        raise InvalidValue(f"the output {quoted(output)} would lie inside the source", remedy="name another output")
